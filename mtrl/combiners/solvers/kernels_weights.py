"""Kernels of weights in closed form: equal projections and EMTL; see `kernels_path`."""

# mypy: ignore-errors
# RUF059: in a loop Triton lets a name have one type only, so `_` cannot take several unused results.
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl

from mtrl.combiners.solvers.equal import SOLVES
from mtrl.combiners.solvers.kernels_path import diagonal, gramian, made, times, units

_SOLVES = tl.constexpr(SOLVES)


@triton.jit
def equal(gram, out, tasks, PROJECTED: tl.constexpr, RIDGE: tl.constexpr, N: tl.constexpr):
    """`equal.equal_projections`: weights [T]."""
    index = tl.arange(0, N)
    exact = gramian(gram, tasks, index)
    _, inverse, _, present = units(exact, index)
    cosines = exact * inverse[:, None] * inverse[None, :]
    there = tl.where(present, 1.0, inverse * 0.0)
    solution = there * 0.0
    ridged = tl.where(index[:, None] == index[None, :], cosines + RIDGE, cosines)
    inverted, _, _, _, _, _ = made(ridged, there, there, index >= 0, index)
    for _ in range(_SOLVES):
        solution += times(inverted, there - times(cosines, solution))
    if PROJECTED:
        largest = tl.max(tl.abs(solution), 0)
        solution = solution / tl.where(largest > 1e-300, largest, 1e-300)
        products = times(cosines, solution)
        square = tl.sum(solution * products, 0)
        size = tl.sum(tl.abs(solution), 0)
        least = RIDGE / 16.0 * size * size
        square = tl.where(square > least, square, least)
        squares = diagonal(exact, index)
        length = tl.sum(products * tl.sqrt(tl.where(squares > 0.0, squares, 0.0)), 0) / tasks.to(tl.float64)
        weights = solution * inverse * length / tl.where(square > 0.0, square, 1.0)
    else:
        total = tl.sum(solution, 0)
        raw = solution / tl.where(total > 1e-300, total, 1e-300) * inverse
        total, least = tl.abs(tl.sum(raw, 0)), 1e-3 * tl.sum(tl.abs(raw), 0)
        total = tl.where(total > least, total, least)
        weights = raw / tl.where(total > 0.0, total, 1.0)
    tl.store(out + index, weights, mask=index < tasks)


@triton.jit
def emtl(gram, lengths, losses, out, tasks, LAM: tl.constexpr, N: tl.constexpr):
    """`emtl._emtl`: weights [T]; the Gramian is that of unit gradients."""
    index = tl.arange(0, N)
    cosines = gramian(gram, tasks, index)
    length = tl.load(lengths + index, mask=index < tasks, other=0.0)
    there = length > 0.0
    count = tl.sum(there.to(tl.float64), 0)
    count = tl.where(count > 1.0, count, 1.0)
    inverse = tl.where(there, tl.sum(length, 0) / count / tl.where(there, length, 1.0), 0.0)
    inverse = tl.where(inverse > 1e100, 1e100, inverse)
    exact = tl.where(there, tl.load(losses + index, mask=index < tasks, other=0.0), 0.0)
    size = tl.sum(tl.abs(exact), 0) / count
    contributions = exact / tl.where(size > 0.0, size, 1.0) * inverse
    apart = tl.where(there, contributions - tl.sum(contributions, 0) / count, 0.0)
    extra = 2.0 * LAM / count * apart * inverse
    longest = tl.max(length, 0)
    relative = length / tl.where(longest > 1e-300, longest, 1e-300)
    before, change = times(cosines, relative), times(cosines, extra * relative)
    worse = tl.where(before > 0.0, tl.where(change < 0.0, before / -change, float("inf")), float("inf"))
    largest = tl.max(tl.abs(extra), 0)
    share = tl.min(worse, 0)
    most = 1.0 / tl.where(largest > 1e-300, largest, 1e-300)
    share = tl.where(share < most, share, most)
    share = tl.where(share < 1.0, share, 1.0)
    tl.store(out + index, (1.0 + share * extra) / tasks.to(tl.float64), mask=index < tasks)
