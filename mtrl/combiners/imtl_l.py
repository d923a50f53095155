"""IMTL-L: a learned scale per task that brings all losses to 1."""

from typing import Literal

from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners._state import Learned
from mtrl.combiners.base import LossCombiner


class IMTLL(PositiveLosses, LossCombiner):
    """IMTL-L (impartial learning): minimises the mean of exp(s_t) loss_t - s_t over parameters and all s_t.

    Liu et al., ICLR 2021 (openreview IMPnRXEWpvr), section 3.2: a task weighs exp(s_t), and s_t, zero at
    first, follows -log(loss_t), where exp(s_t) loss_t = 1. It is `uw` with -s in place of s and twice the
    weights.

    Args:
        lr: Step size of s, by Adam, in [0, 10] (ours; the paper learns s with the network's step size).

    Deviation: the mean over tasks instead of the sum. Negative losses would let s grow without end. With
    `shift` = `minimum` a loss that only falls keeps s = 0.
    """

    name = "imtl_l"

    def __init__(
        self, *, num_tasks: int, lr: float = 0.01, shift: Literal["none", "minimum"] = "none"
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.s = Learned(num_tasks, lr=check_number("lr", lr, low=0.0, high=10.0))

    def _weights(self, losses: Tensor) -> Tensor:
        """Return exp(s) / T, shape [T], for losses [T]; then s takes its step."""
        scales = self.s.value.exp()
        self.s.update(scales * self.origin(losses) - 1.0)
        return (scales / self.num_tasks).to(losses.dtype)
