"""Weights of the direction that projects equally onto all unit gradients (IMTL-G, ConFIG)."""

from torch import Tensor

from mtrl.combiners.solvers import operations as op
from mtrl.combiners.solvers.backends import portable, solve
from mtrl.combiners.solvers.gramian import rounding_ridge
from mtrl.combiners.solvers.operations import Array
from mtrl.combiners.solvers.path import larger, or_one, units_of

_SOLVES = 6
_TINY = 1e-300  # instead of zero in a divisor


def equal_projections(gram: Tensor, *, projected: bool) -> Tensor:
    """Return the weights [T], float64, of a direction whose products with all unit gradients are equal.

    With the cosines C, v solves C v = 1, and w_i = v_i / |g_i|. Tasks with a zero gradient weigh 0.

    A ridge r makes C definite. Each further solve, for the residual of the equations, multiplies the ridge's
    effect along an eigenvector of C by r / (r + eigenvalue). Where the eigenvalue is at the level of rounding
    and no solution exists, n solves only divide the ridge by n.

    Args:
        gram: M [T, T].
        projected: Scale the direction to the mean projection of the gradients onto it; otherwise scale the
            weights to sum 1. A negative sum becomes -1, because scaling it to 1 would make all tasks worse,
            and one below a thousandth of the weights' magnitudes counts as that.
    """
    return solve("equal", gram, numbers=(float(projected), len(gram) * rounding_ridge(gram)))


@portable("equal")
def equal(gram: Array, tasks: int, projected: bool, ridge: float) -> Array:
    """Return the weights of `equal_projections`."""
    _, inverse, _, there = units_of(gram)
    # Rounded alike on and off the diagonal: opposite gradients then have the same weight.
    cosines = gram * inverse[:, None] * inverse[None, :]
    inverse_of = op.inverted(op.with_diagonal(cosines, op.diagonal(cosines) + ridge))
    found = there * 0.0
    solves = _SOLVES
    while solves > 0:
        solves -= 1
        found = found + op.times(inverse_of, there - op.times(cosines, found))
    # Scaled first: where no direction exists the solution itself is as large as 1 / ridge.
    if projected:
        found = found / op.at_least(op.largest(abs(found)), _TINY)
        products = op.times(cosines, found)
        # Below the cosines' rounding error the squared length is unknown; the direction then vanishes.
        size = op.total(abs(found))
        square = op.at_least(op.total(found * products), ridge / 16.0 * size * size)
        length = op.total(products * op.root(op.at_least(op.diagonal(gram), 0.0))) / tasks
        weights: Array = found * inverse * length / or_one(square)
    else:
        raw = found / op.at_least(op.total(found), _TINY) * inverse
        weights = raw / or_one(larger(1e-3 * op.total(abs(raw)), abs(op.total(raw))))
    return weights
