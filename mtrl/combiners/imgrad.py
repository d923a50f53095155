"""IMGrad: CAGrad whose dual weighs its two terms by how balanced the task gradients are."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtrl.combiners._checks import check_choice, check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.simplex import minimise_quadratic, minimise_root, relative_gap, rounded_norm

_STEPS = 20  # of the dual's solver: small rho make it harder than CAGrad's
_HULL_STEPS = 25  # of the min-norm point's: an error of its direction is one of rho and moves the dual
_LOWEST = 1e-4  # smallest rho of the dual; below it the minimiser is next to a vertex and no longer moves


class IMGrad(GramCombiner):
    """IMGrad (imbalance-sensitive gradients): CAGrad with a dual steered by rho = cos(g0, min-norm point).

    Zhou et al., IJCAI 2025 (arXiv:2503.08006): with g0 the mean gradient, w minimises (1.5 - rho) <g_w, g0> +
    rho c |g0| |g_w| over the simplex and d = g0 + c |g0| g_w / |g_w|, divided as `rescale` says. rho is in
    [0, 1], because every gradient has a product of at least |g|^2 with the min-norm point g; near 0 the task
    that the mean serves worst takes all of w.

    Args:
        c: Radius of the ball around the mean gradient relative to its norm (0.5 in the authors' code).
        rescale: Divides the direction by 1 (0), by 1 + c^2 (1, the authors' code) or by 1 + c (2).

    Deviations from the authors' supervised code (their RL code is not public): both problems are solved to
    convergence, and rho below 1e-4 counts as 1e-4. Tasks whose gradient is zero do not enter the
    minimisations; they do count in the mean.
    """

    name: ClassVar[str] = "imgrad"

    def __init__(self, *, num_tasks: int, c: float = 0.5, rescale: Literal[0, 1, 2] = 1) -> None:
        super().__init__(num_tasks=num_tasks)
        self.c = check_number("c", c, low=0.0)
        check_choice("rescale", rescale, (0, 1, 2))
        self._divisor = (1.0, 1.0 + self.c**2, 1.0 + self.c)[rescale]
        self._dual: Tensor
        self._rho: Tensor
        self.register_buffer("_dual", self.last_weights.to(torch.float64), persistent=False)
        self.register_buffer("_rho", torch.ones(1, dtype=torch.float64), persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        """Return u + c |g0| / |g_w| w, rescaled, shape [T], for the Gramian [T, T]."""
        exact = gram.to(torch.float64)
        eps = torch.finfo(gram.dtype).eps
        self._rho.copy_(_balance(exact, eps))
        linear, radius = self._linear(exact)
        dual = minimise_root(exact, linear, start=_start(exact, linear), iterations=_STEPS)
        self._dual.copy_(dual)
        norm, _ = rounded_norm(exact, dual, eps)
        return torch.add(radius / norm * dual, 1.0 / self.num_tasks).div(self._divisor).to(gram.dtype)

    def reset(self) -> None:
        """Forget the last solution."""
        super().reset()
        self._dual.fill_(1.0 / self.num_tasks)
        self._rho.fill_(1.0)

    def metrics(self) -> dict[str, Tensor]:
        """Add `rho` and `residual`, the last duality gap over rho c |g0| and the mean norm under w."""
        gap = relative_gap(self._last_gram, self._linear(self._last_gram)[0], self._dual)
        return {**super().metrics(), "rho": self._rho.squeeze(0), "residual": gap}

    def _linear(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """The objective's linear term once divided by rho c |g0|, and c |g0|."""
        products = gram.mean(dim=-1)
        radius = self.c * products.mean().clamp(min=0.0).sqrt()
        rho = self._rho.clamp(min=_LOWEST)
        scale = rho * torch.where(radius > 0.0, radius, 1.0)
        return products * ((1.5 - rho) / scale), radius


def _balance(gram: Tensor, eps: float) -> Tensor:
    """Cosine of the mean gradient and the min-norm point of the hull, in [0, 1]; 0 where one is zero."""
    shortest = minimise_quadratic(gram, iterations=_HULL_STEPS)
    products = gram.mean(dim=-1)
    length, _ = rounded_norm(gram, shortest, eps)
    scale = length * products.mean().clamp(min=0.0).sqrt()
    return (torch.dot(products, shortest) / torch.where(scale > 0.0, scale, 1.0)).clamp(0.0, 1.0)


def _start(gram: Tensor, linear: Tensor) -> Tensor:
    """A first w [T]: where rho is small the linear term is large and alone decides about the support."""
    price = linear - linear.amin() + gram.diagonal().clamp(min=0.0).sqrt()
    return torch.where(price > 0.0, price, 1.0).reciprocal()
