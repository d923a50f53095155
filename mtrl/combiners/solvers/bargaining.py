"""Weights a > 0 of fair bargains, (Ma)_i = a_i^(-1/alpha): Newton's method on a barrier.

a minimises the convex f(a) = 1/2 a'Ma - sum(phi(a_i)) with phi'(a) = a^(-1/alpha), since M a = phi'(a) is the
equation. Its gradient is Ma - phi'(a), its Hessian M + diag(a^(-1/alpha - 1) / alpha), positive definite.
Three things keep the number of Newton's steps small:

- Units: a_i is measured in units of M_ii^(-alpha / (1 + alpha)), which task i would weigh alone. Norms of
  gradients then drop out.
- Rays: each step first scales a to the minimum of f along t a, where t^((1 + alpha) / alpha) is
  a'phi'(a) / a'Ma.
- Boundary: a step goes at most 95 % of the way to the first a_i = 0, and never beyond Newton's own step.
"""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mtrl.combiners.solvers.backends import Array, problem, solve
from mtrl.combiners.solvers.path import solved

_TO_BOUNDARY = 0.95
# After a step of this relative length only rounding is left, since convergence is quadratic.
_CONVERGED = 1e-7
_SOLVED = 1e-6  # a relative violation of the equations below this needs no steps without the ridge
_NOISE = 0.25  # rounding error of a product of unit gradients, in units of the ridge
_WITHOUT_RIDGE = 10  # steps without the ridge, from the solution with it


def bargaining_weights(matrix: Tensor, *, ridge: float, alpha: float = 1.0) -> Tensor:
    """Return a [T] in float64 with (Ma)_i = a_i^(-1/alpha) and a > 0, for M [T, T].

    alpha = 1 is Nash's bargain; the step counts are made for alpha in [0.5, 5]. Where no solution exists (the
    parameters are Pareto-stationary), a ridge on the Gramian of unit gradients bounds the weights, in the
    units above, by ridge**-0.5. Tasks with a zero row get 0. The result is finite for every finite M.
    """
    # Where only a ridge r bounds a weight, r a = a^(-1/alpha). r = ridge^((1 + alpha) / (2 alpha)) makes that
    # a = ridge^-0.5 for every alpha. For alpha < 1 this r is below the rounding error and would not keep the
    # Hessian of dependent gradients definite, hence the maximum.
    added = max(ridge, ridge ** ((1.0 + alpha) / (2.0 * alpha)))
    # The ridge stands for the rounding error of M's entries; converging further would be noise.
    bound = max(_CONVERGED, 0.02 * ridge**0.5)
    return solve("bargain", matrix, numbers=(alpha, ridge, added, bound, _enough(alpha)))


@problem("bargain", lambda tasks: (tasks,))
def _bargain(matrix: Array, alpha: float, ridge: float, added: float, bound: float, steps: float) -> Array:
    plain, factor, alone, there = _scaled(matrix, alpha)
    ridged = plain + np.eye(len(plain)) * (factor * added)
    a = _stepped(ridged, factor, np.ones(len(plain)), alpha, int(steps), bound)
    violated = _violation(plain, factor, a, alpha)
    if not violated < _SOLVED:
        exact = _stepped(plain, factor, a, alpha, _WITHOUT_RIDGE, 0.0)
        # Newton's steps converge quadratically if there is a solution. If there is none, the weights grow
        # slowly without end, and those with the ridge are kept. A solution whose a'Ma does not exceed the
        # rounding error of its terms exists only through the rounding of M, and does not count either.
        real = exact @ (plain @ exact) > _NOISE * ridge * (exact @ factor**0.5) ** 2
        if _violation(plain, factor, exact, alpha) < 0.01 * violated and real:
            a = exact
    return np.where(there, a * alone, 0.0)


def _enough(alpha: float) -> int:
    """Return how many steps reach rounding level for norms over eight decades, at most 95 % down a step."""
    return 12 if alpha == 1.0 else math.ceil(18.0 + 10.0 * alpha)


def _scaled(matrix: Array, alpha: float) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Return M in the tasks' units, the factor of phi' there, the units, and which tasks have a gradient."""
    squares = matrix.diagonal()
    there = squares > 0.0
    squares = np.where(there, squares, 1.0)
    alone = squares ** (-alpha / (1.0 + alpha))
    # A zero gradient is replaced by a unit gradient orthogonal to all others, whose equation a = 1 solves.
    both = there[:, None] & there[None, :]
    scaled = np.where(both, matrix * alone[:, None] * alone[None, :], np.eye(len(matrix)))
    return scaled, squares * alone**2, alone, there


def _violation(matrix: Array, factor: Array, a: Array, alpha: float) -> float:
    """Return the largest |(Ma)_i / phi'(a_i) - 1|."""
    return float(abs((matrix @ a) * a ** (1.0 / alpha) / factor - 1.0).max())


def _stepped(matrix: Array, factor: Array, a: Array, alpha: float, steps: int, bound: float) -> Array:
    """Return `a` after at most `steps` Newton steps; ends after one of relative length below `bound`."""
    power, share = 1.0 / alpha, alpha / (1.0 + alpha)
    unit = np.eye(len(matrix))
    for _ in range(steps):
        product = matrix @ a
        # The minimum along the ray t a, then Newton's step (H^-1 of the gradient), relative to a.
        radial = (a @ (factor * a**-power) / (a @ product)) ** share
        a = a * radial
        pull = factor * a**-power
        hessian = matrix + unit * (power * pull / a)
        relative = solved(hessian, (product * radial - pull)[:, None])[:, 0] / a
        a = a - a * relative * (_TO_BOUNDARY / relative.max().clip(_TO_BOUNDARY))
        if abs(relative).max() < bound:
            break
    return a
