"""What methods with formulas for positive losses share: a way to make losses positive."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice


class LossOrigin(nn.Module):
    """Measures losses from the lowest value that each task has had so far, plus one: always at least 1.

    Ours, of no paper: SAC's actor loss has no known lower bound. A loss that only falls always measures 1.

    Args:
        num_tasks: T.
        shift: "none" takes losses as they are, "minimum" shifts them.
    """

    def __init__(self, num_tasks: int, shift: str) -> None:
        super().__init__()
        check_choice("shift", shift, ("none", "minimum"))
        self.shifts = shift == "minimum"
        if self.shifts:
            self.lowest: Tensor
            self.register_buffer("lowest", torch.full((num_tasks,), torch.inf, dtype=torch.float64))

    def forward(self, losses: Tensor) -> Tensor:
        """Return the measured losses [T], float64; a loss below the origin lowers it first."""
        exact = losses.detach().to(torch.float64)
        if not self.shifts:
            return exact
        self.lowest.copy_(torch.minimum(self.lowest, exact))
        return exact - self.lowest + 1.0

    def reset(self) -> None:
        """Forget the lowest values."""
        if self.shifts:
            self.lowest.fill_(torch.inf)
