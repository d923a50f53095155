"""CAGrad: the best worst-case improvement within a ball around the mean gradient."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from mtrl.combiners._checks import check_choice, check_number
from mtrl.combiners._simplex import minimise_root, relative_gap, rounded_norm
from mtrl.combiners.base import GramCombiner


class CAGrad(GramCombiner):
    """CAGrad (conflict-averse gradient descent): max_d min_i <g_i, d> subject to |d - g0| <= c |g0|.

    Liu et al., NeurIPS 2021 (arXiv:2110.14048), equation 3 and algorithm 1: with g0 the mean gradient, w
    minimises <g_w, g0> + c |g0| |g_w| over the simplex and d = g0 + c |g0| g_w / |g_w|, divided as `rescale`
    says.

    Args:
        c: Radius of the ball around the mean gradient relative to its norm (paper: 0.9 MT10, 0.5 MT50).
        rescale: Divides the direction by 1 (0), by 1 + c^2 (1, the authors' RL code) or by 1 + c (2).

    Deviations from the authors' RL code: the dual is solved to convergence instead of by 20 steps of SGD on
    logits (which leaves objective gaps of 1e-2 at 50 tasks and fails when norms differ by orders of
    magnitude), and the 1e-4 under its square roots, which makes that code ignore gradients below 1e-2, is
    absent. Tasks whose gradient is zero do not enter the maximisation (no direction changes them); they do
    count in the mean.
    """

    name: ClassVar[str] = "cagrad"

    def __init__(self, *, num_tasks: int, c: float = 0.9, rescale: Literal[0, 1, 2] = 1) -> None:
        super().__init__(num_tasks=num_tasks)
        self.c = check_number("c", c, low=0.0)
        check_choice("rescale", rescale, (0, 1, 2))
        self._divisor = (1.0, 1.0 + self.c**2, 1.0 + self.c)[rescale]
        self._dual: Tensor
        self.register_buffer("_dual", self.last_weights.to(torch.float64), persistent=False)

    def weights(self, gram: Tensor) -> Tensor:
        """Return u + c |g0| / |g_w| w, rescaled, shape [T], for the Gramian [T, T]."""
        exact = gram.to(torch.float64)
        linear, radius = self._linear(exact)
        dual = minimise_root(exact, linear)
        self._dual.copy_(dual)
        norm, _ = rounded_norm(exact, dual, torch.finfo(gram.dtype).eps)
        pull = radius / norm
        return torch.add(pull * dual, 1.0 / self.num_tasks).div(self._divisor).to(gram.dtype)

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the last solve's duality gap over c |g0| and the mean norm under w."""
        gap = relative_gap(self._last_gram, self._linear(self._last_gram)[0], self._dual)
        return {**super().metrics(), "residual": gap}

    def _linear(self, gram: Tensor) -> tuple[Tensor, Tensor]:
        """The objective's linear term once divided by the radius c |g0|, and this radius."""
        products = gram.mean(dim=-1)
        radius = self.c * products.mean().clamp(min=0.0).sqrt()
        return products / torch.where(radius > 0.0, radius, 1.0), radius
