"""RLW: new random task weights at every update, a baseline that many weighting methods do not beat."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from mtrl.combiners._random import scrambled
from mtrl.combiners.base import LossCombiner


class RLW(LossCombiner):
    """RLW (random loss weighting): each update weighs the tasks by the softmax of standard normal numbers.

    Lin et al., TMLR 2022 (arXiv:2111.10603), with its normal distribution; the weights sum to 1.

    Deviations from the authors' code: weights of sum 1 instead of T; the numbers come from a counter that is
    part of the state, not from the global random stream. Critic and actor have a counter each.
    """

    name: ClassVar[str] = "rlw"
    reads_losses: ClassVar[bool] = False

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)
        self.step: Tensor
        self._keys: Tensor
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64))
        keys = torch.arange(1, 2 * num_tasks + 1, dtype=torch.int64).view(2, num_tasks)
        self.register_buffer("_keys", keys, persistent=False)

    def _weights(self, losses: Tensor) -> Tensor:
        """Return random weights [T] of sum 1; the losses only give the dtype."""
        drawn = _normals(self._keys, self.step, self.stream).softmax(dim=0)
        self.step.add_(1)
        return drawn.to(losses.dtype)

    def reset(self) -> None:
        """Start the sequence of weights again."""
        super().reset()
        self.step.zero_()


def _normals(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Standard normal numbers [T] in float64 from the keys [2, T] (Box and Muller)."""
    # The upper 53 bits as a number in (0, 1).
    uniform: Tensor = ((scrambled(keys, step, stream) >> 11 & 0x1FFFFFFFFFFFFF).double() + 0.5) * 2.0**-53
    return (-2.0 * uniform[0].log()).sqrt() * (2.0 * math.pi * uniform[1]).cos()
