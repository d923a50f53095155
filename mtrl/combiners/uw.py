"""Uncertainty weighting: a learned noise level per task."""

from typing import Literal

from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners._state import Learned
from mtrl.combiners.base import LossCombiner


class UW(PositiveLosses, LossCombiner):
    """Uncertainty weighting: minimises the mean of (exp(-s_t) loss_t + s_t) / 2 over parameters and all s_t.

    Kendall, Gal and Cipolla, CVPR 2018 (arXiv:1705.07115), section 3.2 with s the logarithm of a task's
    variance: a task weighs exp(-s_t) / 2, and s_t, zero at first, follows log(loss_t) by Adam. Deviation: the
    mean over tasks instead of the sum. Negative losses would let s fall without end. With `shift` = `minimum`
    a loss that only falls keeps s = 0.

    Args:
        lr: Learning rate of s, in [0, 10] (0.01 in the RL code of FAMO's authors).
    """

    name = "uw"
    papers = ("kendall2018uw",)

    def __init__(
        self, *, num_tasks: int, lr: float = 0.01, shift: Literal["none", "minimum"] = "none"
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.s = Learned(num_tasks, lr=check_number("lr", lr, low=0.0, high=10.0))

    def _weights(self, losses: Tensor) -> Tensor:
        precision = (-self.s.value).exp()
        self.s.update((1.0 - precision * self.origin(losses)) / 2.0)
        return precision / (2.0 * self.num_tasks)
