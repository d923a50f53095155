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

import torch
from torch import Tensor

from mtrl.combiners.solvers import operations as op
from mtrl.combiners.solvers.backends import portable, solve
from mtrl.combiners.solvers.operations import Array
from mtrl.combiners.solvers.path import larger

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


def bargain_residual(
    gram: Tensor, weights: Tensor, *, alpha: float = 1.0, preference: Tensor | float = 1.0
) -> Tensor:
    """Return the largest |(w_i / p_i)^(1/alpha) (Mw)_i - 1| over the tasks with a gradient, a 0-dim tensor.

    For M, w and the preference p, [T, T], [T] and [T] or a number. Errors above 1 count as 1: the Gramian
    holds no solution.
    """
    missed = ((weights / preference).pow(1.0 / alpha) * (gram @ weights) - 1.0).abs()
    return torch.where(gram.diagonal() > 0.0, missed, 0.0).amax().clamp(max=1.0)


def _enough(alpha: float) -> int:
    """Return the steps to rounding level for norms over eight decades; each lowers an a_i by at most 95 %."""
    return 12 if alpha == 1.0 else math.ceil(18.0 + 10.0 * alpha)


@portable("bargain")
def bargain(
    gram: Array, tasks: int, alpha: float, ridge: float, added: float, bound: float, steps: int
) -> Array:
    """Return the weights of `bargaining_weights`."""
    squares = op.diagonal(gram)
    there = squares > 0.0
    squares = op.where(there, squares, 1.0)
    # M in the tasks' units, and the factor of phi' there. A zero gradient is replaced by a unit gradient
    # orthogonal to all others, whose equation a = 1 solves.
    alone = op.power(squares, -alpha / (1.0 + alpha))
    factor = op.power(squares, (1.0 - alpha) / (1.0 + alpha))
    plain = op.with_diagonal(gram * alone[:, None] * alone[None, :], factor)
    a = _stepped(
        op.with_diagonal(plain, factor + factor * added), factor, factor * 0.0 + 1.0, alpha, steps, bound
    )
    violated = _violation(plain, factor, a, alpha)
    if not violated < _SOLVED:
        exact = _stepped(plain, factor, a, alpha, _WITHOUT_RIDGE, 0.0)
        # Newton's steps converge quadratically if there is a solution. If there is none, the weights grow
        # slowly without end, and those with the ridge are kept. A solution whose a'Ma does not exceed the
        # rounding error of its terms exists only through the rounding of M, and does not count either.
        own = op.where(there, exact, 0.0)
        lengths = op.total(own * op.root(factor))
        real = op.total(own * op.times(plain, own)) > _NOISE * ridge * lengths * lengths
        if (_violation(plain, factor, exact, alpha) < 0.01 * violated) & real:
            a = exact
    result: Array = op.where(there, a * alone, 0.0)
    return result


def _violation(matrix: Array, factor: Array, a: Array, alpha: float) -> float:
    """Return the largest |(Ma)_i / phi'(a_i) - 1|."""
    found: float = op.largest(abs(op.times(matrix, a) * op.power(a, 1.0 / alpha) / factor - 1.0))
    return found


def _stepped(matrix: Array, factor: Array, a: Array, alpha: float, most: int, bound: float) -> Array:
    """Return `a` after at most `most` Newton steps; ends after one of relative length below `bound`."""
    own = op.diagonal(matrix)
    steps = 0
    while steps < most:
        steps += 1
        product = op.times(matrix, a)
        # The minimum along the ray t a, then Newton's step (H^-1 of the gradient), relative to a.
        pull = factor * op.power(a, -1.0 / alpha)
        radial = op.power(op.total(a * pull) / op.total(a * product), alpha / (1.0 + alpha))
        a = a * radial
        pull = pull * op.power(radial, -1.0 / alpha)
        hessian = op.with_diagonal(matrix, own + 1.0 / alpha * pull / a)
        relative = op.solved(hessian, product * radial - pull) / a
        a = a - a * relative * (_TO_BOUNDARY / larger(_TO_BOUNDARY, op.largest(relative)))
        if op.largest(abs(relative)) < bound:
            steps = most
    return a
