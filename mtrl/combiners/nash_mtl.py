"""Nash-MTL: the Nash bargaining solution between the tasks."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_count, check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.bargaining import bargain_residual, bargaining_weights
from mtrl.combiners.solvers.gramian import rounding_ridge


class NashMTL(GramCombiner):
    """Nash-MTL: the direction that maximises the product of the tasks' improvements, whatever their scales.

    Navon et al., ICML 2022 (arXiv:2202.01017), claim 3.1: weights a > 0 with M a = 1/a for the Gramian M; the
    norm of the direction is sqrt(T) before clipping.

    Args:
        max_norm: Norm to which a longer direction is scaled down (1.0 in the authors' code); 0: never.
        refresh_every: Updates per solve; in between the last weights are used again (paper: 1, 50, 100).

    Deviation from the authors' code: Newton's method solves the fixed point to rounding error, instead of 20
    linearised convex programs on the CPU that can fail. Where no solution exists (Pareto-stationary
    parameters) a ridge at the rounding level of the Gramian's dtype bounds the weights. Near that, where
    gradients cancel up to 1e-5 of their length (single precision: 1e-2), the Gramian does not determine the
    solution to 1e-5; `residual` tells the error, up to 1. Tasks with a zero gradient weigh 0, and so do
    gradients whose squares vanish: the direction is 0 for float32 gradients of 1e-24. Kept weights are
    unclipped: `max_norm` applies to the current gradients. Their code also weighs the losses of task heads.
    """

    name = "nash_mtl"
    papers = ("navon2022nashmtl",)

    def __init__(self, *, num_tasks: int, max_norm: float = 1.0, refresh_every: int = 1) -> None:
        super().__init__(num_tasks=num_tasks)
        self.max_norm = check_number("max_norm", max_norm, low=0.0)
        self.refresh_every = check_count("refresh_every", refresh_every)
        self._scale = nn.Buffer(torch.ones(1, dtype=torch.float64), persistent=False)
        self.kept = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.until_solve = nn.Buffer(torch.zeros(1, dtype=torch.int64))  # updates

    def _weights(self, gram: Tensor) -> Tensor:
        exact = gram.to(torch.float64)
        solution = bargaining_weights(exact, ridge=rounding_ridge(gram))
        if self.refresh_every > 1:
            solution = self._kept(solution, exact.isfinite().all())
        if self.max_norm > 0.0:
            norm = (solution @ exact @ solution).clamp(min=0.0).sqrt()
            self._scale.copy_(self.max_norm / norm.clamp(min=self.max_norm))
            solution = solution * self._scale
        return solution

    def _kept(self, solution: Tensor, finite: Tensor) -> Tensor:
        # Solving in every update fits one CUDA graph, and an unused solve costs far less than the Jacobian.
        # Weights of a non-finite gradient are not kept; the next update is due instead.
        due = (self.until_solve <= 0) & finite
        self.kept.copy_(torch.where(due, solution, self.kept))
        self.until_solve.copy_(torch.where(due, self.refresh_every - 1, (self.until_solve - 1).clamp(min=0)))
        return torch.where(finite, self.kept, torch.nan)

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the largest |a_i (Ma)_i - 1|, before clipping (see `bargain_residual`)."""
        residual = bargain_residual(self._last_gram, self.last_weights / self._scale)
        return {**super().metrics(), "residual": residual}
