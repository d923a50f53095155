"""Kernels of the solvers that take Newton's steps: caps and bargains; see `kernels_path`."""

# mypy: ignore-errors
# RUF059: in a loop Triton lets a name have one type only, so `_` cannot take several unused results.
# ruff: noqa: ANN001, ANN201, ANN202, RUF059

import triton
import triton.language as tl

from mtrl.combiners.solvers.kernels_path import diagonal, gramian, made, times, units


@triton.jit
def _share(value, change):
    """The part of a step that keeps `value` positive, at most 1."""
    room = tl.where(change < 0.0, -value / tl.where(change < 0.0, change, 1.0), float("inf"))
    nearest = tl.min(room, 0) * 0.995
    return tl.where(nearest < 1.0, nearest, nearest * 0.0 + 1.0)


@triton.jit
def _towards(v, t, z, y, free, along, amounts, lack, low, high):
    """Newton's step of `hull._stepped` from its two solves, and the share of it that `hull._share` allows."""
    nu = (lack - tl.sum(amounts * free, 0)) / tl.sum(amounts * along, 0)
    dv = free + nu * along
    dz = (low - z * dv) / v
    dy = (high + y * dv) / t
    share = tl.minimum(tl.minimum(_share(v, dv), _share(t, -dv)), tl.minimum(_share(z, dz), _share(y, dy)))
    return dv, dz, dy, nu, share


@triton.jit
def capped(gram, out, tasks, CAP: tl.constexpr, TOLERANCE: tl.constexpr, N: tl.constexpr):
    """`hull.shortest_capped`: weights [T]."""
    index = tl.arange(0, N)
    cosines, _, amounts, present = units(gramian(gram, tasks, index), index)
    there = tl.where(present, 1.0, amounts * 0.0)
    number = tl.sum(there, 0)
    count = tasks.to(tl.float64)
    cap = tl.where(CAP * count > 1.0, CAP + number * 0.0, 1.0 / count)
    some = tl.where(number > 1.0, number, 1.0)
    room = number * cap - 1.0
    mixed = there / some
    if room > 1e-9:
        own = tl.where(present, amounts, 1.0)
        v = tl.where(present, 1.0 / (own * number), 0.5)
        t = tl.where(present, (room + 1.0) / some / own - v, 0.5)
        pull = times(cosines, v)
        nu = tl.sum(v * pull, 0)
        slope = pull - nu * amounts
        level = tl.sum(tl.abs(slope) * v, 0) / N + 1e-3
        z = tl.where(slope > 0.0, slope, 0.0) + level / v
        y = tl.where(slope < 0.0, -slope, 0.0) + level / t
        steps = 40
        while steps > 0:
            steps -= 1
            gap = tl.sum(v * z, 0) + tl.sum(t * y, 0)
            pull = times(cosines, v)
            if gap <= 1e-16 * (1.0 + tl.sum(v * pull, 0)):
                steps = steps * 0
            else:
                ridged = cosines + TOLERANCE + (z / v + y / t)[:, None]
                matrix = tl.where(index[:, None] == index[None, :], ridged, cosines)
                slope = pull - nu * amounts - z + y
                lack = 1.0 - tl.sum(amounts * v, 0)
                low, high = -v * z, -t * y
                right = low / v - high / t - slope
                matrix, free, along, qq, qn, nn = made(matrix, right, amounts, index >= 0, index)
                dv, dz, dy, dnu, share = _towards(v, t, z, y, -free, -along, amounts, lack, low, high)
                left = tl.sum((v + share * dv) * (z + share * dz), 0)
                left = (left + tl.sum((t - share * dv) * (y + share * dy), 0)) / gap
                centre = left * left * left * gap / (2 * N)
                low, high = centre + low - dv * dz, centre + high + dv * dy
                free = times(matrix, low / v - high / t - slope)
                dv, dz, dy, dnu, share = _towards(v, t, z, y, free, -along, amounts, lack, low, high)
                far = tl.sum(v + z + y, 0) + nu + share * (tl.sum(dv + dz + dy, 0) + dnu)
                share = tl.where(tl.abs(far) < float("inf"), share, 0.0)
                if share > 0.0:
                    v, t, z, y = v + share * dv, t - share * dv, z + share * dz, y + share * dy
                    nu += share * dnu
        mixed = v * amounts / tl.sum(v * amounts, 0)
    mixed = mixed * (1.0 + tl.where(room < 0.0, room, 0.0))
    absent = count - number
    rest = (1.0 - tl.sum(mixed, 0)) / tl.where(absent > 1.0, absent, 1.0)
    tl.store(out + index, mixed + (1.0 - there) * tl.where(rest > 0.0, rest, 0.0), mask=index < tasks)


@triton.jit
def _power(values, exponent):
    return tl.exp(tl.log(values) * exponent)


@triton.jit
def _violation(matrix, factor, a, ALPHA: tl.constexpr):
    return tl.max(tl.abs(times(matrix, a) * _power(a, 1.0 / ALPHA) / factor - 1.0), 0)


@triton.jit
def _bargained(matrix, factor, a, index, steps, bound, ALPHA: tl.constexpr):
    """`bargaining._stepped`."""
    while steps > 0:
        steps -= 1
        product = times(matrix, a)
        radial = tl.sum(factor * _power(a, 1.0 - 1.0 / ALPHA), 0) / tl.sum(a * product, 0)
        radial = _power(radial, ALPHA / (1.0 + ALPHA))
        a = a * radial
        pull = factor * _power(a, -1.0 / ALPHA)
        stiff = matrix + (1.0 / ALPHA * pull / a)[:, None]
        hessian = tl.where(index[:, None] == index[None, :], stiff, matrix)
        right = product * radial - pull
        _, solved, _, _, _, _ = made(hessian, right, right * 0.0, index >= 0, index)
        relative = -solved / a
        longest = tl.max(relative, 0)
        a = a - a * relative * (0.95 / tl.where(longest > 0.95, longest, 0.95))
        if tl.max(tl.abs(relative), 0) < bound:
            steps = steps * 0
    return a


@triton.jit
def bargain(
    gram,
    out,
    tasks,
    ALPHA: tl.constexpr,
    RIDGE: tl.constexpr,
    ADDED: tl.constexpr,
    BOUND: tl.constexpr,
    STEPS: tl.constexpr,
    N: tl.constexpr,
):
    """`bargaining.bargaining_weights`: weights [T]."""
    index = tl.arange(0, N)
    same = index[:, None] == index[None, :]
    exact = gramian(gram, tasks, index)
    squares = diagonal(exact, index)
    there = squares > 0.0
    squares = tl.where(there, squares, 1.0)
    alone = _power(squares, -ALPHA / (1.0 + ALPHA))
    factor = squares * alone * alone
    plain = exact * alone[:, None] * alone[None, :]
    plain = tl.where(same & (there[:, None] == 0), 1.0, plain)
    ridged = tl.where(same, plain + factor[:, None] * ADDED, plain)
    zero = tl.sum(factor * 0.0, 0)
    a = _bargained(ridged, factor, factor * 0.0 + 1.0, index, STEPS + tasks * 0, BOUND + zero, ALPHA)
    violated = _violation(plain, factor, a, ALPHA)
    if (violated < 1e-6) == 0:
        other = _bargained(plain, factor, a, index, 10 + tasks * 0, zero, ALPHA)
        lengths = tl.sum(other * tl.sqrt(factor), 0)
        real = tl.sum(other * times(plain, other), 0) > 0.25 * RIDGE * lengths * lengths
        if (_violation(plain, factor, other, ALPHA) < 0.01 * violated) & real:
            a = other
    tl.store(out + index, tl.where(there, a * alone, 0.0), mask=index < tasks)
