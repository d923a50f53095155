"""The operations of `operations` in Triton, and solvers in these operations as functions of a kernel.

One program holds a whole problem in registers: N is a power of two. Numbers are compile-time constants, since
Triton passes Python floats in single precision. Triton has no linear algebra: matrices are inverted by
pivots.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, D103

import sys
from functools import cache
from types import FunctionType

import triton
import triton.language as tl

from mtrl.combiners.solvers import operations


@cache
def compiled(solver):
    """Return a solver, or a function that it calls, as a function that kernels may call."""
    # The names of types stand at arguments, where Triton looks them up.
    scope = dict.fromkeys(("Array", "Any", "bool"), tl.constexpr(0))
    scope |= {"__name__": solver.__module__, "tl": tl, "abs": absolute}
    for name in solver.__code__.co_names:
        value = solver.__globals__.get(name)
        if value is operations:
            scope[name] = sys.modules[__name__]
        elif isinstance(value, FunctionType):
            scope[name] = compiled(value)
        elif isinstance(value, float | int):
            scope[name] = tl.constexpr(value)
    return triton.jit(FunctionType(solver.__code__, scope, solver.__name__))


INF = tl.constexpr(operations.INF)


@triton.jit
def absolute(values):
    return tl.abs(values)


@triton.jit
def select(flags, yes, no):
    return tl.where(flags, yes, no)


where = select


@triton.jit
def at_least(values, bound):
    return tl.where(values < bound, bound, values)  # NaN stays


@triton.jit
def total(values):
    return tl.sum(values, 0)


@triton.jit
def largest(values):
    return tl.max(values, 0)


@triton.jit
def smallest(values):
    return tl.min(values, 0)


@triton.jit
def argmin(values):
    return tl.argmin(values, 0)


@triton.jit
def any_of(flags):
    return tl.sum(flags.to(tl.int32), 0) > 0


@triton.jit
def root(values):
    return tl.sqrt(values)


@triton.jit
def power(values, exponent: tl.constexpr):
    return tl.exp(tl.log(values) * exponent)


@triton.jit
def real(value):
    return tl.full([], value, tl.float64)


@triton.jit
def indices(vector):
    return tl.arange(0, vector.shape[0])


@triton.jit
def entry(values, place):
    return tl.sum(tl.where(indices(values) == place, values, 0.0), 0)


@triton.jit
def holds(flags, place):
    return any_of(flags & (indices(flags) == place))


@triton.jit
def flipped(flags, place):
    return flags ^ (indices(flags) == place)


@triton.jit
def column(matrix, place):
    return tl.sum(tl.where(tl.arange(0, matrix.shape[1])[None, :] == place, matrix, 0.0), 1)


@triton.jit
def _row(matrix, place):
    return tl.sum(tl.where(tl.arange(0, matrix.shape[0])[:, None] == place, matrix, 0.0), 0)


@triton.jit
def _on_diagonal(matrix):
    index = tl.arange(0, matrix.shape[0])
    return index[:, None] == index[None, :]


@triton.jit
def diagonal(matrix):
    return tl.sum(tl.where(_on_diagonal(matrix), matrix, 0.0), 1)


@triton.jit
def with_diagonal(matrix, values):
    return tl.where(_on_diagonal(matrix), values[:, None], matrix)


@triton.jit
def joined(matrix, vector, place):
    here = indices(vector) == place
    return tl.where(here[:, None], vector[None, :], tl.where(here[None, :], vector[:, None], matrix))


@triton.jit
def times(matrix, vector):
    return tl.sum(matrix * vector[None, :], 1)


@triton.jit
def pivoted(tableau, place):
    index = tl.arange(0, tableau.shape[0])
    line = column(tableau, place)
    pivot = entry(line, place)
    row = tl.where(index == place, 1.0 / pivot, -_row(tableau, place) / pivot)
    found = tl.where(index[None, :] == place, 0.0, tableau) + line[:, None] * row[None, :]
    return tl.where(index[:, None] == place, row[None, :], found)


@triton.jit
def pivoted_on(tableau, chosen):
    # The largest diagonal entry first, and what is not a number at last.
    left = chosen
    while any_of(left):
        pivots = diagonal(tableau)
        pivots = tl.where(pivots == pivots, pivots, -1e300)
        place = tl.argmax(tl.where(left, pivots, -float("inf")), 0)
        tableau = pivoted(tableau, place)
        left = left & (indices(left) != place)
    return tableau


@triton.jit
def solutions(tableau, chosen, place):
    found = pivoted_on(tableau, chosen)
    return tl.where(chosen, -column(found, place), 0.0), tl.where(chosen, -column(found, place + 1), 0.0)


@triton.jit
def inverted(matrix):
    return pivoted_on(matrix, tl.arange(0, matrix.shape[0]) >= 0)


@triton.jit
def solved(matrix, right):
    return times(inverted(matrix), right)
