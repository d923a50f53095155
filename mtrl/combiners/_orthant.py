"""The Nash bargaining weights, a > 0 with a_i (Ma)_i = 1: Newton's method on a log barrier, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.combiners._traced import traced

_TO_BOUNDARY = 0.95  # share of the way to the boundary that a step may use


def bargaining_weights(matrix: Tensor, *, ridge: float, iterations: int = 12) -> Tensor:
    """Return a [..., T] in float64, the minimiser of 1/2 a'Ma - sum(log a_i) over a > 0, for M [..., T, T].

    M is scaled to a unit diagonal, so rows of any norm are equally easy, and `ridge` is added to that
    diagonal: it bounds a by ridge**-0.5 where no solution exists (the parameters are Pareto-stationary).
    Tasks with a zero row get 0. Finite for every finite M; reads nothing back to the host.
    """
    with torch.no_grad():
        return _solve(matrix.to(torch.float64), ridge=ridge, iterations=iterations)


@traced
def _solve(matrix: Tensor, *, ridge: float, iterations: int) -> Tensor:
    tasks = matrix.shape[-1]
    squares = matrix.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # [..., T, 1]; every vector below is a column
    present = squares > 0.0
    inverse_norm = torch.where(present, squares, 1.0).rsqrt()
    unit = torch.eye(tasks, dtype=matrix.dtype, device=matrix.device)
    # A missing task becomes one that is orthogonal to all others and of unit norm: solved by a = 1, no
    # influence.
    matrix = torch.where(present & present.mT, matrix * inverse_norm * inverse_norm.mT, unit)
    matrix = torch.add(matrix, unit, alpha=ridge)
    a = torch.ones_like(squares)
    for _ in range(iterations):
        product = matrix @ a
        # Every solution has a'Ma = T: rescaling is the exact line search along the ray and saves most steps.
        radial = (tasks / (a.mT @ product)).sqrt()
        a = a * radial
        inverse = a.reciprocal()
        gradient = torch.addcmul(-inverse, product, radial)
        hessian = torch.addcmul(matrix, unit, inverse.square())
        factor = torch.linalg.cholesky_ex(hessian, check_errors=False)[0]
        newton = torch.cholesky_solve(gradient, factor)
        furthest = (newton * inverse).amax(dim=-2, keepdim=True)
        a = torch.addcmul(a, newton, _TO_BOUNDARY / furthest.clamp(min=_TO_BOUNDARY), value=-1.0)
    return torch.where(present, a * inverse_norm, 0.0).squeeze(-1)
