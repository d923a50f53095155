"""Weights a > 0 of fair bargains, (Ma)_i = a_i^(-1/alpha): Newton's method on a barrier, on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtrl.combiners.solvers import fused as _fused
from mtrl.combiners.solvers.traced import chunks, converged, traced

_TO_BOUNDARY = 0.95  # share of the way to the boundary that a step may use
_CONVERGED = 1e-7  # relative length of a step after which only rounding is left: convergence is quadratic
_SOLVED = 1e-6  # relative violation of the equations below which the ridge has done no harm
_WITHOUT_RIDGE = 4  # steps that take a ridge's effect away, where a solution without it is near
_CHUNK = (5, 2)  # steps before the first look at that length and between two


def bargaining_weights(
    matrix: Tensor, *, ridge: float, alpha: float = 1.0, iterations: int | None = None
) -> Tensor:
    """Return a [..., T] in float64 with (Ma)_i = a_i^(-1/alpha) and a > 0, for M [..., T, T].

    a minimises 1/2 a'Ma - sum(phi(a_i)) with phi'(a) = a^(-1/alpha); alpha = 1 is the logarithm and Nash's
    bargain, and [0.5, 5] is the range that the iteration counts are for. Each task is measured in what it
    would weigh alone, so rows of any norm are equally safe. A ridge on the Gramian of unit diagonal bounds
    the weights in these units by ridge**-0.5 where no solution exists (the parameters are Pareto-stationary).
    Tasks with a zero row get 0. Finite for every finite M; reads nothing back to the host.
    """
    with torch.no_grad():
        # A ridge stands for the rounding error of M's entries; no step goes beyond that.
        steps, bound = iterations or _enough(alpha), max(_CONVERGED, 0.02 * ridge**0.5)
        ridge **= (1.0 + alpha) / (2.0 * alpha)
        if alpha == 1.0 and _fused.usable(matrix):
            return _fused.bargaining_weights(
                matrix, steps, RIDGE=ridge, BOUND=bound, SOLVED=_SOLVED,
                TO_BOUNDARY=_TO_BOUNDARY, WITHOUT_RIDGE=_WITHOUT_RIDGE,
            )  # fmt: skip
        plain, ridged, factor, alone, present = _scaled(matrix.to(torch.float64), ridge=ridge, alpha=alpha)
        a = torch.ones_like(alone)
        for count in chunks(steps, *_CHUNK):
            a, moved = _steps(ridged, factor, a, alpha=alpha, count=count)
            if converged(moved, bound):
                break
        violated = _violation(plain, factor, a, alpha=alpha)
        if not converged(violated.amax(), _SOLVED):
            exact, _ = _steps(plain, factor, a, alpha=alpha, count=_WITHOUT_RIDGE)
            # Quadratic convergence tells a solution from the slow growth of weights where there is none.
            better = _violation(plain, factor, exact, alpha=alpha) < 0.01 * violated
            a = torch.where(better, exact, a)
        return torch.where(present, a * alone, 0.0).squeeze(-1)


def _enough(alpha: float) -> int:
    """Steps to rounding level where norms spread over six decades."""
    if alpha == 1.0:
        return 12
    return max(math.ceil(8.0 + 5.0 * alpha), 18)


@traced
def _scaled(matrix: Tensor, *, ridge: float, alpha: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Measure each task in what it would weigh alone.

    Returns the matrix without and with the ridge, the factor of phi', these units, and who is present.
    """
    share = alpha / (1.0 + alpha)
    squares = matrix.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # [..., T, 1]; every vector below is a column
    present = squares > 0.0
    squares = torch.where(present, squares, 1.0)
    alone = squares.pow(-share)
    # In these units the diagonal of M and the factor of phi' are the same.
    factor = squares * alone.square()
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    # A missing task becomes one that is orthogonal to all others and of unit norm: solved by a = 1, no
    # influence.
    matrix = torch.where(present & present.mT, matrix * alone * alone.mT, unit)
    return matrix, torch.addcmul(matrix, unit, factor, value=ridge), factor, alone, present


@traced
def _violation(matrix: Tensor, factor: Tensor, a: Tensor, *, alpha: float) -> Tensor:
    """Largest |(Ma)_i / phi'(a_i) - 1|, [..., 1, 1]."""
    return ((matrix @ a) * a.pow(1.0 / alpha) / factor - 1.0).abs().amax(dim=-2, keepdim=True)


@traced
def _steps(matrix: Tensor, factor: Tensor, a: Tensor, *, alpha: float, count: int) -> tuple[Tensor, Tensor]:
    """Newton steps from a; also the largest relative change that the last one wanted."""
    tasks = matrix.shape[-1]
    logarithm = alpha == 1.0
    power, share = 1.0 / alpha, alpha / (1.0 + alpha)
    unit = torch.eye(tasks, dtype=matrix.dtype, device=matrix.device)
    for _ in range(count):
        product = matrix @ a
        # Every solution has a'Ma = a'phi': rescaling is the exact line search along the ray and saves most
        # steps.
        total = tasks if logarithm else a.mT @ (factor * a.pow(-power))
        radial = (total / (a.mT @ product)).pow(share)
        a = a * radial
        inverse = a.reciprocal()
        pull = inverse if logarithm else factor * a.pow(-power)
        gradient = torch.addcmul(-pull, product, radial)
        hessian = torch.addcmul(matrix, unit, pull * inverse, value=power)
        cholesky = torch.linalg.cholesky_ex(hessian, check_errors=False)[0]
        newton = torch.cholesky_solve(gradient, cholesky)
        relative = newton * inverse
        furthest = relative.amax(dim=-2, keepdim=True)
        a = torch.addcmul(a, newton, _TO_BOUNDARY / furthest.clamp(min=_TO_BOUNDARY), value=-1.0)
    return a, relative.abs().amax()
