"""BMTL: difficult tasks, those with large losses, weigh more."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import LossCombiner


class BMTL(LossCombiner):
    """BMTL (balanced multi-task learning): weights are the softmax of the losses over a temperature.

    Liang and Zhang, 2020 (arXiv:2002.04792): minimises the sum of exp(loss_t / temperature), which weighs
    task t's gradient by exp(loss_t / temperature) / temperature.

    Args:
        temperature: Difference of losses that makes one task weigh e times another (no published value for
            SAC's losses: fit it to theirs).

    Deviation from the paper: the weights are scaled to sum to 1. Losses of any sign are fine, since adding a
    number to all of them changes nothing.
    """

    name: ClassVar[str] = "bmtl"

    def __init__(self, *, num_tasks: int, temperature: float = 50.0) -> None:
        super().__init__(num_tasks=num_tasks)
        self.temperature = check_number("temperature", temperature, low=1e-6)

    def _weights(self, losses: Tensor) -> Tensor:
        """Return weights [T] that sum to 1 for losses [T]."""
        exact = losses.to(torch.float64)
        return torch.softmax((exact - exact.amax()) / self.temperature, dim=0).to(losses.dtype)
