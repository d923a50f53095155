"""Weights a > 0 of fair bargains, (Ma)_i = a_i^(-1/alpha): Newton's method on a barrier.

a minimises the convex f(a) = 1/2 a'Ma - sum(phi(a_i)) with phi'(a) = a^(-1/alpha), since M a = phi'(a) is the
equation. Its gradient is Ma - phi'(a), its Hessian M + diag(a^(-1/alpha - 1) / alpha), positive definite.
Three things keep the number of Newton's steps small:

- Units: each task is measured in what it would weigh alone, M_ii^(-alpha / (1 + alpha)), so that norms drop
  out.
- Rays: along t a the minimum is known, t^((1 + alpha) / alpha) = a'phi'(a) / a'Ma, and is taken before each
  step.
- Boundary: a step goes at most 95 % of the way to the first a_i = 0, and no further than Newton's own length.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from mtrl.combiners.solvers.backends import Backend, backend_of

_TO_BOUNDARY = 0.95
_CONVERGED = 1e-7  # relative length of a step after which only rounding is left: convergence is quadratic
_SOLVED = 1e-6  # relative violation of the equations below which the ridge has done no harm
_WITHOUT_RIDGE = 10  # steps without the ridge, from its solution: enough where a solution without it is near


def bargaining_weights(matrix: Tensor, *, ridge: float, alpha: float = 1.0) -> Tensor:
    """Return a [T] in float64 with (Ma)_i = a_i^(-1/alpha) and a > 0, for M [T, T].

    alpha = 1 is the logarithm and Nash's bargain; [0.5, 5] is the range that the step counts are for. A
    ridge on the Gramian of unit diagonal bounds the weights in units of their own by ridge**-0.5 where no
    solution exists (the parameters are Pareto-stationary). Tasks with a zero row get 0. Finite for every
    finite M.
    """
    backend = backend_of(matrix)
    xp = backend.xp
    with backend.quiet():
        plain, factor, alone, there = _scaled(backend, backend.ready(matrix), alpha)
        # The ridge stands for the rounding error of M's entries; no step goes beyond that.
        bound = max(_CONVERGED, 0.02 * ridge**0.5)
        # Where a ridge r alone holds a weight back, r a = a^(-1/alpha). r = ridge^((1 + alpha) / (2 alpha))
        # makes that a = ridge^-0.5 for every alpha. For alpha < 1 this r is below the rounding error and
        # would not keep the Hessian of dependent gradients definite, hence the maximum.
        ridged = plain + backend.unit(plain) * (factor * max(ridge, ridge ** ((1.0 + alpha) / (2.0 * alpha))))
        a = _stepped(backend, ridged, factor, alone * 0.0 + 1.0, alpha, _enough(alpha), bound)
        violated = _violation(plain, factor, a, alpha)
        if not backend.known(violated < _SOLVED):
            exact = _stepped(backend, plain, factor, a, alpha, _WITHOUT_RIDGE, 0.0)
            # Newton's steps converge quadratically to a solution. Where there is none the weights grow slowly
            # without end, and the weights with the ridge are kept.
            better = _violation(plain, factor, exact, alpha) < 0.01 * violated
            a = backend.select(better, exact, a)
        return backend.tensor(xp.where(there, a * alone, 0.0))


def _enough(alpha: float) -> int:
    """Steps to rounding level where norms spread over eight decades: small weights fall by 95 % a step."""
    return 12 if alpha == 1.0 else math.ceil(18.0 + 10.0 * alpha)


def _scaled(backend: Backend, matrix: Any, alpha: float) -> tuple[Any, Any, Any, Any]:
    """M in the tasks' own units, the factor that phi' has there, these units, and who has a gradient."""
    xp = backend.xp
    squares = matrix.diagonal()
    there = squares > 0.0
    squares = xp.where(there, squares, 1.0)
    alone = squares ** (-alpha / (1.0 + alpha))
    # A task without a gradient becomes one of unit norm that is orthogonal to all others: solved by a = 1.
    both = there[:, None] & there[None, :]
    scaled = xp.where(both, matrix * alone[:, None] * alone[None, :], backend.unit(matrix))
    return scaled, squares * alone**2, alone, there


def _violation(matrix: Any, factor: Any, a: Any, alpha: float) -> Any:
    """Largest |(Ma)_i / phi'(a_i) - 1|."""
    return abs((matrix @ a) * a ** (1.0 / alpha) / factor - 1.0).max()


def _stepped(
    backend: Backend, matrix: Any, factor: Any, a: Any, alpha: float, steps: int, bound: float
) -> Any:
    """Return `a` after so many Newton steps, or once the relative length of one is below the bound."""
    power, share = 1.0 / alpha, alpha / (1.0 + alpha)
    unit = backend.unit(matrix)
    for _ in range(steps):
        product = matrix @ a
        # The minimum along the ray t a, then Newton's step (H^-1 of the gradient), relative to a.
        radial = (a @ (factor * a**-power) / (a @ product)) ** share
        a = a * radial
        pull = factor * a**-power
        hessian = matrix + unit * (power * pull / a)
        relative = backend.solve(hessian, (product * radial - pull)[:, None])[:, 0] / a
        a = a - a * relative * (_TO_BOUNDARY / relative.max().clip(_TO_BOUNDARY))
        if backend.known(abs(relative).max() < bound):
            break
    return a
