"""Loss-proportional steps: each task's part of the step is proportional to its loss."""

from torch import Tensor

from mtrl.combiners._families import PositiveLosses
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import lengths_of, one_over, weighted_sum


class LossProportional(PositiveLosses, JacobianCombiner):
    """Loss-proportional steps: the weighted gradients have lengths proportional to the losses.

    Derived from Yuan and Zhang, 2023 (arXiv:2306.09373, EMTL), but not that method (see `emtl`): with the
    norm of the weighted gradient in place of the raw one, the variance of loss_t / |w_t g_t| over the tasks
    is zero for w_t proportional to loss_t / |g_t|.

    The scale is ours: the lengths |w_t g_t| sum to the mean length of the gradients. Tasks with a zero
    gradient weigh 0. The metric `weights` is scaled to sum to 1. With `shift` = `minimum` this is `ngdiff` if
    all losses only fall.
    """

    name = "loss_proportional"
    papers = ("yuan2023emtl",)
    credit = "No paper describes this method: it follows from another reading of the paper's abstract."

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        assert losses is not None
        measured = self.origin(losses)
        lengths = lengths_of(jacobian)
        parts = measured / measured.amax() * (lengths > 0.0)
        ratios = parts / parts.sum().clamp(min=1e-300) * one_over(lengths)
        self.last_weights.copy_(ratios / ratios.sum().clamp(min=1e-300))
        return weighted_sum(lengths.mean() * ratios, jacobian)
