"""IMTL-L: a learned scale per task that brings all losses to 1."""

from typing import Literal

from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners._state import Learned, LossOrigin
from mtrl.combiners.base import LossCombiner


class IMTLL(LossCombiner):
    """IMTL-L (impartial learning): minimises the mean of exp(s_t) loss_t - s_t over parameters and all s_t.

    Liu et al., ICLR 2021 (openreview IMPnRXEWpvr), section 3.2: a task weighs exp(s_t), and s_t, zero at
    first, follows -log(loss_t), where exp(s_t) loss_t = 1. It is `uw` with -s in place of s and twice the
    weights.

    Args:
        lr: Step size of s, by Adam, in [0, 10] (ours; the paper learns s with the network's step size).
        shift: `none` needs losses of at least 0, such as a critic's, since s grows without end for negative
            ones; `minimum` measures each task's loss from its lowest value so far, plus one (ours): a loss
            that only falls measures 1 and keeps s = 0.

    Deviation: the mean over tasks instead of the sum.
    """

    name = "imtl_l"
    positive_losses = True

    def __init__(
        self, *, num_tasks: int, lr: float = 0.01, shift: Literal["none", "minimum"] = "none"
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.s = Learned(num_tasks, lr=check_number("lr", lr, low=0.0, high=10.0))
        self.origin = LossOrigin(num_tasks, shift)
        self.shift = shift

    def _weights(self, losses: Tensor) -> Tensor:
        """Return exp(s) / T, shape [T], for losses [T]; then s takes its step."""
        scales = self.s.value.exp()
        self.s.update(scales * self.origin(losses) - 1.0)
        return (scales / self.num_tasks).to(losses.dtype)
