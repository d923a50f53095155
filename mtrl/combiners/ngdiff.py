"""Normalised gradients: every task pulls with the same strength."""

import torch
from torch import Tensor

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import gram_lengths, one_over


class NGDiff(GramCombiner):
    """Normalised gradients: the mean of g_t / |g_t|, times the mean of the lengths |g_t|.

    Jin et al., NAACL 2025 (arXiv:2410.22086), "normalised gradient difference": two tasks, one to keep and
    one to forget, give g_keep / |g_keep| - g_forget / |g_forget|. Here all tasks descend: a sum.

    Deviations from the paper: its learning rate from an estimate of the curvature is left to the optimiser;
    the mean length keeps the direction on the scale of the gradients. Tasks with a zero gradient weigh 0, and
    so do gradients whose squares vanish: the direction is 0 for float32 gradients of 1e-24.
    """

    name = "ngdiff"
    papers = ("jin2025ngdiff",)

    def _weights(self, gram: Tensor) -> Tensor:
        lengths = gram_lengths(gram.to(torch.float64))
        return lengths.mean() / self.num_tasks * one_over(lengths)
