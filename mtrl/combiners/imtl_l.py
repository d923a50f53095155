"""IMTL-L: a learned scale per task that brings all losses to 1."""

from torch import Tensor

from mtrl.combiners.uw import UW


class IMTLL(UW):
    """IMTL-L (impartial learning): minimises the mean of exp(s_t) loss_t - s_t over parameters and all s_t.

    Liu et al., ICLR 2021 (openreview IMPnRXEWpvr), section 3.2: a task weighs exp(s_t), and s_t, zero at
    first, follows -log(loss_t), where exp(s_t) loss_t = 1. It is `uw` with -s in place of s and twice the
    weights.

    Args:
        lr: Learning rate of s, by Adam, in [0, 10] (ours; the paper takes the network's).

    Deviation: the mean over tasks instead of the sum. Negative losses would let s grow without end. With
    `shift` = `minimum` a loss that only falls keeps s = 0.
    """

    name = "imtl_l"
    papers = ("liu2021imtl",)

    def _weights(self, losses: Tensor) -> Tensor:
        """Return exp(s) / T, shape [T], for losses [T]; then s takes its step."""
        scales = self.s.value.exp()
        self.s.update(scales * self.origin(losses) - 1.0)
        return scales / self.num_tasks
