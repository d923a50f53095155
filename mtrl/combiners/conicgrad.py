"""ConicGrad: the best worst-case improvement within a cone around the mean gradient."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.simplex import minimise_root, relative_gap, rounded_norm


class ConicGrad(GramCombiner):
    """ConicGrad: max_d min_i <g_i, d> in the cone <g0, d> >= c |g0| |d| around the mean gradient g0.

    Hassanpour et al., 2025 (arXiv:2502.00217), for the problem. Its exact dual, solved here: w on the simplex
    and eta >= 0 minimise |g_w + eta e0| - c eta for e0 = g0 / |g0|, and d = |g0| (g_w + eta e0) / |g_w + eta
    e0|; eta is 0 where the cone does not bind.

    Args:
        c: Smallest cosine between the direction and the mean gradient; 1 is the mean, 0 the half-space.

    Deviations: the paper's closed form with a regularised matrix inverse, its default c and its optimiser of
    w are not reproduced (there is no public code, and the unregularised form points away from g0 where <g_w,
    g0> > 0), so magnitudes follow the rule |d| = |g0| stated above. Tasks whose gradient is zero do not enter
    the minimisation.
    """

    name: ClassVar[str] = "conicgrad"

    def __init__(self, *, num_tasks: int, c: float = 0.5) -> None:
        super().__init__(num_tasks=num_tasks)
        self.c = check_number("c", c, low=0.0, high=1.0)
        self._dual: Tensor
        self._normal: Tensor
        dual = torch.full((num_tasks + 1,), 1.0 / num_tasks, dtype=torch.float64)
        self.register_buffer("_dual", dual, persistent=False)
        self.register_buffer("_normal", (torch.arange(num_tasks + 1) < num_tasks).double(), persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        """Return |g0| (w + eta / |g0| u) / |g_w + eta e0|, shape [T], for the Gramian [T, T]."""
        if self.c == 1.0:
            return torch.full_like(gram[0], 1.0 / self.num_tasks)
        matrix, linear, scale, length = self._lifted(gram.to(torch.float64))
        eps = torch.finfo(gram.dtype).eps
        dual = minimise_root(matrix, linear, normal=self._normal, eps=eps)
        self._dual.copy_(dual)
        norm, above_noise = rounded_norm(matrix, dual, eps)
        tasks = torch.add(dual[:-1], dual[-1] * scale / self.num_tasks) * (length / norm)
        # Rounding can leave the cone where no direction improves all tasks (there the norm vanishes): put the
        # direction on the cone's surface, keeping its part across the mean gradient.
        reach = matrix[-1, -1].sqrt() * length
        cosine = (torch.dot(matrix[-1, :-1], tasks) / torch.where(reach > 0.0, reach, 1.0)).clamp(-1.0, 1.0)
        across = ((1.0 - self.c**2) / (1.0 - cosine.square()).clamp(min=1e-12)).sqrt()
        moved = torch.add(tasks * across, (self.c - across * cosine) / self.num_tasks)
        tasks = torch.where(cosine < self.c, moved, tasks)
        return torch.where(above_noise, tasks, 1.0 / self.num_tasks).to(gram.dtype)

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the duality gap of the last solve relative to the gradients' norms."""
        matrix, linear, *_ = self._lifted(self._last_gram)
        return {**super().metrics(), "residual": relative_gap(matrix, linear, self._dual, self._normal)}

    def _lifted(self, gram: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gramian and linear term of the T gradients and a stretched g0; the stretch; |g0|."""
        products = gram.mean(dim=-1)
        length = products.mean().clamp(min=0.0).sqrt()
        typical = gram.diagonal().mean().sqrt()
        scale = typical / torch.where(length > 0.0, length, 1.0)
        column = (products * scale).unsqueeze(-1)
        corner = (scale * length).square().view(1, 1)
        matrix = torch.cat((torch.cat((gram, column), dim=1), torch.cat((column.mT, corner), dim=1)), dim=0)
        linear = torch.where(self._normal > 0.0, 0.0, -self.c * scale * length)
        return matrix, linear, scale, length
