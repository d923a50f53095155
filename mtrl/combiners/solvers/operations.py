"""The operations that solvers are written in, for NumPy arrays; `kernels_operations` has them for Triton.

A solver is written once. NumPy runs it on a CPU, and Triton compiles it to one kernel for a CUDA device.
Triton's language is a part of Python: arithmetic, comparisons, `if`, `while` and calls of functions of this
kind, but no methods, slices, `break` or early `return`. Numbers that a branch or a loop changes are made by
`real` at first, or are counts and flags. A matrix is [N, N] and a vector [N], where N is at least the number
of tasks; what lies beyond the tasks belongs to zero gradients, which take no part. `total`, `root`, `times`
and `diagonal` also take tensors.
"""

from collections.abc import Callable
from operator import getitem, matmul
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

where: Callable[..., Any] = np.where
largest: Callable[[Array], Any] = np.maximum.reduce
smallest: Callable[[Array], Any] = np.minimum.reduce
argmin: Callable[[Array], Any] = np.argmin
any_of: Callable[[Array], Any] = np.logical_or.reduce
at_least: Callable[[Array, Any], Any] = np.maximum
entry: Any = getitem  # of a vector of numbers
holds: Any = getitem  # of a vector of flags
times: Callable[[Any, Any], Any] = matmul
real = float
INF = np.inf


def select(flag: Any, yes: Any, no: Any) -> Any:
    """Return one of two numbers."""
    return yes if flag else no


def total(values: Any) -> Any:
    """Return the sum of a vector."""
    return values.sum()


def root(values: Any) -> Any:
    """Return square roots."""
    return values**0.5


def power(values: Any, exponent: float) -> Any:
    """Return powers of positive numbers."""
    return values**exponent


def indices(vector: Array) -> Array:
    """Return 0, 1, 2, ..., as many as a vector has entries."""
    return np.arange(len(vector))


def flipped(flags: Array, place: int) -> Array:
    """Return flags of which the one at `place` is turned."""
    changed = flags.copy()
    changed[place] = not flags[place]
    return changed


def diagonal(matrix: Array) -> Array:
    """Return the diagonal of a matrix."""
    return matrix.diagonal()


def column(matrix: Array, place: int) -> Array:
    """Return a column of a matrix."""
    found: Array = matrix[:, place]
    return found


def with_diagonal(matrix: Array, values: Array) -> Array:
    """Return a matrix with another diagonal."""
    changed = matrix.copy()
    np.fill_diagonal(changed, values)
    return changed


def joined(matrix: Array, vector: Array, place: int) -> Array:
    """Return a symmetric matrix with another row and column at `place`."""
    changed = matrix.copy()
    changed[:, place] = changed[place] = vector
    return changed


def inverted(matrix: Array) -> Array:
    """Return the inverse of a positive definite matrix; NaN where there is none."""
    try:
        return np.linalg.inv(matrix)
    except np.linalg.LinAlgError:
        return matrix * np.nan


def solved(matrix: Array, right: Array) -> Array:
    """Return `matrix^-1 right` for a positive definite matrix; NaN where there is none."""
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return right * np.nan


def pivoted(tableau: Array, place: int) -> Array:
    """Return a tableau after a pivot: row s_i = p v_i + ... is solved for v_i and put into all other rows."""
    line = tableau[:, place]
    row = tableau[place] / -line[place]
    row[place] = 1.0 / line[place]
    found: Array = tableau + line[:, None] * row[None, :]
    found[:, place] = line * row[place]
    found[place] = row
    return found


def pivoted_on(tableau: Array, chosen: Array) -> Array:
    """Return a symmetric tableau after pivots on all that is `chosen`, computed by one stable solve.

    With K the tableau, A the chosen rows and B the rest: [K_AA^-1, -K_AA^-1 K_AB; K_BA K_AA^-1,
    K_BB - K_BA K_AA^-1 K_AB].
    """
    inside = np.flatnonzero(chosen)
    rows = tableau[inside]
    both = solved(rows[:, inside], np.concatenate((rows, np.eye(len(inside))), 1))
    shares, inverse = both[:, : len(tableau)], both[:, len(tableau) :]
    found: Array = tableau - rows.T @ shares
    found[inside], found[:, inside] = -shares, shares.T
    found[np.ix_(inside, inside)] = inverse
    return found


def solutions(tableau: Array, chosen: Array, place: int) -> tuple[Array, Array]:
    """Return K_AA^-1 k for two columns k of a tableau, those at `place` and behind it; 0 where not chosen."""
    inside = np.flatnonzero(chosen)
    rows = tableau[inside]
    both = np.zeros((len(tableau), 2))
    both[inside] = solved(rows[:, inside], rows[:, place : place + 2])
    return both[:, 0], both[:, 1]
