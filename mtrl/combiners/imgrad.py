"""IMGrad: CAGrad whose dual depends on how balanced the task gradients are."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.cagrad import divisor_of
from mtrl.combiners.solvers.gramian import gram_lengths
from mtrl.combiners.solvers.hull import shortest_in_hull
from mtrl.combiners.solvers.worst_case import around_gap, best_around

_LOWEST = 1e-4  # smallest rho of the dual; below it the minimiser is next to a vertex and no longer moves


class IMGrad(GramCombiner):
    """IMGrad (imbalance-sensitive gradients): CAGrad with a dual that depends on the gradients' imbalance.

    Zhou et al., IJCAI 2025 (arXiv:2503.08006). g0 is the mean gradient and rho its cosine with the min-norm
    point of the hull. w minimises (1.5 - rho) g_w.g0 + rho c |g0| |g_w| over the simplex, and d = g0 + c |g0|
    g_w / |g_w|, divided as `rescale` says. rho is in [0, 1], since the product of every gradient with the
    min-norm point is at least that point's square; near 0 the task that the mean serves worst takes all of w.

    Args:
        c: Radius of the ball around the mean gradient relative to its norm (authors' code: 0.5, scripts:
            0.8).
        rescale: Divides the direction by 1 (0), by 1 + c^2 (1, the authors' code) or by 1 + c (2).

    Deviations from the authors' supervised code (their RL code is not public): both problems are solved to
    convergence, rho below 1e-4 counts as 1e-4, and the direction is not multiplied by T. Tasks with a zero
    gradient leave the minimisations but count in the mean. A missing bracket in their Cityscapes code, by
    which 1.5 - rho multiplies one term only, is not copied.
    """

    name = "imgrad"
    papers = ("zhou2025imgrad",)

    def __init__(self, *, num_tasks: int, c: float = 0.5, rescale: Literal[0, 1, 2] = 1) -> None:
        super().__init__(num_tasks=num_tasks)
        self.c = check_number("c", c, low=0.0)
        self._divisor = divisor_of(self.c, rescale)
        self._reference = nn.Buffer(self.last_weights.clone(), persistent=False)
        self._dual = nn.Buffer(self.last_weights.clone(), persistent=False)
        self._rho = nn.Buffer(torch.ones(1, dtype=torch.float64), persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        """Return u + c |g0| / |g_w| w, rescaled, shape [T], for the Gramian [T, T]."""
        exact = gram.to(torch.float64)
        eps = torch.finfo(gram.dtype).eps
        self._rho.copy_(_balance(exact, eps))
        weights, dual = best_around(exact, self._reference, self.c, eps=eps, factor=self._factor())
        self._dual.copy_(dual)
        return weights / self._divisor

    def metrics(self) -> dict[str, Tensor]:
        """Add `rho` and `residual`, the duality gap over c |g0| and the mean norm under w (as CAGrad's)."""
        weights = self.last_weights * self._divisor
        gap = around_gap(self._last_gram, self._reference, self.c, weights, self._dual, self._factor())
        gap = gap * self._rho.clamp(min=_LOWEST).squeeze(0)
        return {**super().metrics(), "rho": self._rho.squeeze(0), "residual": gap}

    def _factor(self) -> Tensor:
        """Return the weight [1] of the linear term after the objective is divided by rho."""
        rho = self._rho.clamp(min=_LOWEST)
        return (1.5 - rho) / rho


def _balance(gram: Tensor, eps: float) -> Tensor:
    """Return the cosine of the mean gradient and the min-norm point, in [0, 1]; 0 where one is zero."""
    shortest = shortest_in_hull(gram, eps=eps)
    products = gram.mean(dim=-1)
    square = torch.dot(shortest, gram @ shortest)
    # Below the rounding error of its square the min-norm point is noise, and so is its direction.
    noise = torch.dot(shortest, gram_lengths(gram)).square() * len(gram) * eps
    scale = (square * products.mean()).clamp(min=0.0).sqrt()
    scale = torch.where((square > noise) & (scale > 0.0), scale, torch.inf)
    return (torch.dot(products, shortest) / scale).clamp(0.0, 1.0)
