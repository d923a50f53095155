"""Loss-proportional steps: each task's part of the step is proportional to its loss."""

from typing import Literal

import torch
from torch import Tensor

from mtrl.combiners._state import LossOrigin
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import lengths_of, weighted_sum


class LossProportional(JacobianCombiner):
    """Loss-proportional steps: the weighted gradients have lengths proportional to the losses.

    Derived from Yuan and Zhang, 2023 (arXiv:2306.09373, EMTL), but not that method (see `emtl`): with the
    norm of the weighted gradient in place of the raw one, the variance of loss_t / |w_t g_t| over the tasks
    is zero for w_t proportional to loss_t / |g_t|.

    Args:
        shift: `none` needs losses of at least 0, such as a critic's; `minimum` measures each task's loss from
            its lowest value so far, plus one (ours). If all losses only fall, this is `ngdiff`.

    The scale is ours: the lengths |w_t g_t| sum to the mean length of the gradients. Tasks with a zero
    gradient weigh 0. The metric `weights` is scaled to sum to 1.
    """

    name = "loss_proportional"
    reads_losses = True
    positive_losses = True

    def __init__(self, *, num_tasks: int, shift: Literal["none", "minimum"] = "none") -> None:
        super().__init__(num_tasks=num_tasks)
        self.origin = LossOrigin(num_tasks, shift)
        self.shift = shift

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        assert losses is not None
        measured = self.origin(losses)
        lengths = lengths_of(jacobian)
        parts = torch.where(lengths > 0.0, measured / measured.amax(), 0.0)
        total = parts.sum()
        parts = parts / torch.where(total > 0.0, total, 1.0)
        ratios = parts / torch.where(lengths > 0.0, lengths, 1.0)
        everything = ratios.sum()
        self.last_weights.copy_(ratios / torch.where(everything > 0.0, everything, 1.0))
        return weighted_sum(lengths.mean() * ratios, jacobian)
