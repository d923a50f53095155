"""What methods with formulas for positive losses share: a way to make losses positive."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice

_LEAST = 1e-8  # what the authors of FAMO and of DB-MTL add under their logarithms


class LossOrigin(nn.Module):
    """Losses as they are, or measured from the lowest value of each task so far, plus one: at least 1.

    Losses of a critic, squared errors, need no shift: the authors of FAMO, UW, GradNorm and DB-MTL take them
    as they are. `minimum` is ours, of no paper, for losses without a known lower bound, such as SAC's
    actor's, and takes from methods what they live on: a loss that only falls measures 1 for ever, and one
    that stands still does, too. Each method says in its docstring what is left of it then.

    Args:
        num_tasks: T.
        shift: "none" takes losses as they are, of which those below 1e-8 count as that; "minimum" shifts
            them.
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
            return exact.clamp(min=_LEAST)
        self.lowest.copy_(torch.minimum(self.lowest, exact))
        return exact - self.lowest + 1.0

    def reset(self) -> None:
        """Forget the lowest values."""
        if self.shifts:
            self.lowest.fill_(torch.inf)
