"""EMTL: evens out the tasks' relative contributions, loss over gradient norm."""

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.backends import Array, problem, solve
from mtrl.combiners.solvers.gramian import lengths_and_cosines, weighted_sum


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
        weights = solve("emtl", cosine, (lengths, losses.to(torch.float64)), (self.lam,))
        self.last_weights.copy_(weights)
        return weighted_sum(weights, jacobian)


@problem("emtl", lambda tasks: (tasks,))
def _emtl(cosine: Array, lengths: Array, losses: Array, lam: float) -> Array:
    there = lengths > 0.0
    count = max(there.sum(), 1)
    # Lengths and losses in units of their means over tasks with a gradient. Squares must not overflow.
    inverse = (lengths.sum() / count / np.where(there, lengths, np.inf)).clip(max=1e100)
    exact = np.where(there, losses, 0.0)
    size = abs(exact).sum() / count
    contributions = exact / (size if size > 0.0 else 1.0) * inverse
    extra = 2.0 * lam / count * there * (contributions - contributions.sum() / count) * inverse
    relative = lengths / lengths.max().clip(1e-300)
    # Each task's improvement under the mean, and what `extra` adds to it: the largest share of `extra` that
    # turns none of them round and keeps weights positive.
    before, change = cosine @ relative, cosine @ (extra * relative)
    worse = np.where((change < 0.0) & (before > 0.0), before / -change, np.inf)
    share = np.minimum(worse.min(), 1.0 / abs(extra).max().clip(1e-300)).clip(max=1.0)
    weights: Array = (1.0 + share * extra) / len(lengths)
    return weights
