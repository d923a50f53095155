"""EMTL: evens out the tasks' relative contributions, loss over gradient norm."""

import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers import operations as op
from mtrl.combiners.solvers.backends import portable, solve
from mtrl.combiners.solvers.gramian import lengths_and_cosines, weighted_sum
from mtrl.combiners.solvers.operations import Array
from mtrl.combiners.solvers.path import or_one, smaller, tolerance_of

_LONGEST = 1e100  # one over a length, whose square must not overflow
_TINY = 1e-300  # instead of zero in a divisor


class EMTL(JacobianCombiner):
    """EMTL (equitable multi-task learning): minimises sum_t loss_t + lam Var_t(c_t), c_t = loss_t / |g_t|.

    Yuan and Zhang, 2023 (arXiv:2306.09373), by the words of its abstract: a task's relative contribution is
    its loss over its raw gradient norm, and their variance is a regulariser. With the norms held fixed task t
    weighs 1 + (2 lam / T) (c_t - mean c) / |g_t|. The paper's text could not be read and no code was found:
    the fixed norms, the unit of lam and its value are ours. `loss_proportional` is another reading.

    Args:
        lam: Weight of the variance in units of (mean |g|)^2 / mean |loss|, in which no scale of losses or
            gradients matters; 0 is the mean.

    The variance's part of the weights grows with 1 / |g_t|^2, without bound. It is therefore scaled down
    (ours) as far as needed to keep weights in [0, 2 / T] and not to make a task worse that the mean improves.
    The direction is the mean of the weighted gradients, not the sum. Tasks with a zero gradient do not enter
    the variance. Losses may have any sign.
    """

    name = "emtl"
    papers = ("yuan2023emtl",)
    credit = "Made after the abstract alone."
    reads_losses = True

    def __init__(self, *, num_tasks: int, lam: float = 0.1) -> None:
        super().__init__(num_tasks=num_tasks)
        self.lam = check_number("lam", lam, low=0.0)

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        assert losses is not None
        lengths, cosine = lengths_and_cosines(jacobian)
        products = torch.promote_types(jacobian.dtype, torch.float32)  # of the cosines
        numbers = (self.lam, tolerance_of(torch.finfo(products).eps))
        weights = solve("emtl", cosine, (lengths, losses.to(torch.float64)), numbers)
        self.last_weights.copy_(weights)
        return weighted_sum(weights, jacobian)


@portable("emtl")
def weigh(cosine: Array, lengths: Array, losses: Array, tasks: int, lam: float, tolerance: float) -> Array:
    """Return the weights of `EMTL`, for cosines with an error of `tolerance`."""
    there = lengths > 0.0
    count = or_one(op.total(op.where(there, 1.0, lengths * 0.0)))
    # Lengths and losses in units of their means over tasks with a gradient.
    inverse = op.where(there, op.total(lengths) / count / op.where(there, lengths, 1.0), 0.0)
    inverse = op.where(inverse > _LONGEST, _LONGEST, inverse)
    exact = op.where(there, losses, 0.0)
    contributions = exact / or_one(op.total(abs(exact)) / count) * inverse
    apart = op.where(there, contributions - op.total(contributions) / count, 0.0)
    extra = 2.0 * lam / count * apart * inverse
    relative = lengths / op.at_least(op.largest(lengths), _TINY)
    # Each task's improvement under the mean, and what `extra` adds to it: the largest share of `extra` that
    # makes none of them negative and keeps weights positive. Where gradients cancel, an improvement is
    # rounding.
    before = op.times(cosine, relative)
    before = op.where(before > tolerance * op.times(abs(cosine), relative), before, 0.0)
    change = op.times(cosine, extra * relative)
    worse = op.where((change < 0.0) & (before > 0.0), before / op.where(change < 0.0, -change, 1.0), op.INF)
    share = smaller(op.smallest(worse), 1.0 / op.at_least(op.largest(abs(extra)), _TINY))
    weights: Array = (1.0 + smaller(op.real(1.0), share) * extra) / op.real(tasks)
    return weights
