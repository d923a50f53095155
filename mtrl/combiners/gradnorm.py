"""GradNorm: learns task weights that even out gradient norms and rates of training."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners._state import Learned
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import lengths_of, weighted_sum


class GradNorm(PositiveLosses, JacobianCombiner):
    """GradNorm: weights w_t are learned so that w_t |g_t| approaches mean(w |g|) r_t^alpha.

    Chen et al., ICML 2018 (arXiv:1711.02257), equations 1 and 2. r_t is loss_t over task t's first loss,
    divided by its mean over the tasks. w descends on sum_t |w_t |g_t| - mean(w |g|) r_t^alpha|, with the
    targets held fixed, and sums to T.

    Args:
        alpha: How much slower tasks are favoured; 0 only evens out the norms (Meta-World+ code: 0.12).
        lr: Learning rate of the weights' logits (the paper's for its weights: 0.025).

    Deviations from the paper: w is T times a softmax of logits, which stays positive and needs no
    renormalising. Norms are those of the whole shared gradients instead of one layer's, in units of their
    mean, so that Adam's epsilon does not matter. The direction is the mean of w_t g_t, not the sum. A task
    without a gradient enters no mean, and nothing pulls at its logit. With `shift` = `minimum` only norms are
    evened out: a loss that falls and one that stays both measure 1.
    """

    name = "gradnorm"
    papers = ("chen2018gradnorm",)

    def __init__(
        self,
        *,
        num_tasks: int,
        alpha: float = 0.12,
        lr: float = 0.025,
        shift: Literal["none", "minimum"] = "none",
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.logits = Learned(num_tasks, lr=check_number("lr", lr, low=0.0))
        self.initial = nn.Buffer(torch.ones(num_tasks, dtype=torch.float64))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        assert losses is not None
        measured = self.origin(losses)
        torch.where(self.logits.step == 0.0, measured, self.initial, out=self.initial)
        left = measured / self.initial
        weights = torch.softmax(self.logits.value, dim=0, out=self.last_weights)
        lengths = weights * lengths_of(jacobian)
        # The norm of a task without a gradient cannot be evened out: its logit would grow without end.
        absent = lengths == 0.0
        share = 1.0 - absent.sum(dtype=torch.float64) / self.num_tasks  # of tasks with a gradient
        mean, mean_left = lengths.mean() / share, left.masked_fill(absent, 0.0).mean() / share
        above = torch.addcmul(lengths, mean, (left / mean_left) ** self.alpha, value=-1.0).sign()
        # The derivative by w_t, times w_t, in units of the mean length. The gradient of the logits subtracts
        # `among` times its sum, since a constant added to all logits changes no weight.
        slope = lengths / mean * above
        among = self.logits.value.masked_fill(absent, -torch.inf).softmax(dim=0)
        gradient = torch.addcmul(slope, among, slope.sum(), value=-1.0)
        self.logits.update(gradient.masked_fill_(absent, 0.0))
        return weighted_sum(weights, jacobian)
