"""NTKMTL: unit gradients, scaled by the norm of all gradients together."""

import torch
from torch import Tensor

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import gram_lengths, one_over


class NTKMTL(GramCombiner):
    """NTKMTL (tasks' convergence speeds by the neural tangent kernel): w_t = sqrt(tr M / M_tt) / T.

    Qin et al., NeurIPS 2025, in the form of the authors' code for one kernel entry per task, in which the
    largest eigenvalue of a task's kernel is M_tt, the square of its gradient's norm. The direction is that of
    `ngdiff` with another length: sqrt(sum_s |g_s|^2) times the mean of the unit gradients.

    Deviations from the authors' code: the mean over tasks instead of T times the sum, no clipping to norm 1,
    and always the square root (an option there; 3/4 in one script). Its variant with several kernel entries
    per task needs gradients of parts of a batch and is absent. Tasks with a zero gradient weigh 0.
    """

    name = "ntkmtl"
    papers = ("qin2025ntkmtl",)

    def _weights(self, gram: Tensor) -> Tensor:
        lengths = gram_lengths(gram.to(torch.float64))
        return lengths.square().sum().sqrt() / self.num_tasks * one_over(lengths)
