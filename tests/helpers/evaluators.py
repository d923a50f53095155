"""What stands in for a network's gradients where a test calls `direction`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Rows:
    """Serves a fixed Jacobian [T, P] per batch, the same everywhere, no heads; notes what is asked for."""

    def __init__(self, *batches: Tensor, losses: Tensor | None = None) -> None:
        self.batches: Sequence[Tensor] = batches
        first = batches[0]
        self.losses = torch.arange(1.0, len(first) + 1.0, dtype=first.dtype) if losses is None else losses
        self.parameters = torch.ones_like(first[0])
        self.asked: list[Tensor | None] = []
        self.backward_passes = 0

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        none = self.batches[0].new_empty(len(self.batches[0]), 0)
        return none, none

    def __call__(
        self,
        offset: Tensor | None = None,
        batch: int = 0,
        tasks: Tensor | None = None,
        head_offset: Tensor | None = None,
    ) -> Tensor:
        self.asked.append(tasks)
        rows = self.batches[batch]
        return rows if tasks is None else rows[tasks]

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        self.backward_passes += 1
        return weights_of(self.losses) @ self.batches[0]
