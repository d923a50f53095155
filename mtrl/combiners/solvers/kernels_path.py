"""The solvers on a CUDA device: one kernel launch per solve, written in Triton.

Each kernel follows the NumPy solver of the same problem (`path`, `worst_case`, `hull`, `bargaining`), whose
docstrings explain the mathematics. Tests compare the two on the same problems in Triton's interpreter,
without a GPU. One program holds the whole problem in registers: matrices are [N, N], N the next power of
two, and entries beyond the T tasks belong to zero gradients, which never take part. Loops end as soon as the
solution is reached, which costs no read on the host. Numbers are compile-time constants, since Triton passes
Python floats in single precision.

A solve by pivots alone replaces NumPy's linear algebra: pivots on all tasks of a set A turn the tableau
[C, q, n; q', 0, 0; n', 0, 0] into [C_AA^-1, ...], the solutions -C_AA^-1 q_A and -C_AA^-1 n_A, and
the products of these with q and n. Only the upper right of the borders is kept; signs give the rest.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202

import triton
import triton.language as tl

next_power_of_2 = triton.next_power_of_2
_FADING = tl.constexpr(1e-32)


@triton.jit
def _entry(values, index, place):
    return tl.sum(tl.where(index == place, values, 0.0), 0)


@triton.jit
def diagonal(matrix, index):
    """The diagonal of a matrix [N, N]."""
    return tl.sum(tl.where(index[:, None] == index[None, :], matrix, 0.0), 1)


@triton.jit
def times(matrix, vector):
    """The product of a matrix [N, N] and a vector [N]."""
    return tl.sum(matrix * vector[None, :], 1)


@triton.jit
def _root(qq, qn, nn):
    """`path._root`."""
    some = nn > 0.0
    square = qn * qn - nn * (qq - 1.0)
    root = tl.sqrt(tl.where(square > 0.0, square, 0.0))
    return tl.where(some, (qn + root) / tl.where(some, nn, 1.0), float("inf"))


@triton.jit
def _pivoted(matrix, q, n, qq, qn, nn, active, index, place):
    """`path._pivoted` for the tableau of a matrix, its borders q and n and their products."""
    column = tl.sum(tl.where(index[None, :] == place, matrix, 0.0), 1)
    here = index == place
    pivot = _entry(column, index, place)
    inside = _entry(active.to(tl.float64), index, place) > 0.0
    # Row and column are the same, with opposite signs between tasks in A and tasks outside.
    sign = tl.where(inside, 1.0, -1.0)
    row = tl.where(here, 1.0 / pivot, tl.where(active, -sign, sign) * column / pivot)
    own_q, own_n = _entry(q, index, place), _entry(n, index, place)
    row_q, row_n = own_q / -pivot, own_n / -pivot
    matrix = tl.where(index[None, :] == place, 0.0, matrix) + column[:, None] * row[None, :]
    matrix = tl.where(here[:, None], row[None, :], matrix)
    q = tl.where(here, row_q, q + column * row_q)
    n = tl.where(here, row_n, n + column * row_n)
    qq -= sign * own_q * row_q
    qn -= sign * own_q * row_n
    nn -= sign * own_n * row_n
    return matrix, q, n, qq, qn, nn, active != here


@triton.jit
def made(matrix, q, n, wanted, index):
    """`path._made`: the tableau after pivots on all of `wanted`, the largest diagonal entry first."""
    zero = tl.sum(q * 0.0, 0)
    qq, qn, nn = zero, zero, zero
    active = wanted & (index < 0)
    left = tl.sum(wanted.to(tl.int32), 0)
    while left > 0:
        pivots = diagonal(matrix, index)
        pivots = tl.where(pivots == pivots, pivots, -1e300)  # NaN takes its turn at last
        place = tl.argmax(tl.where(wanted & (active == 0), pivots, -float("inf")), 0)
        matrix, q, n, qq, qn, nn, active = _pivoted(matrix, q, n, qq, qn, nn, active, index, place)
        left -= 1
    return matrix, q, n, qq, qn, nn


@triton.jit
def _followed(
    cosines,
    amounts,
    offsets,
    tasks,
    index,
    TO_LENGTH: tl.constexpr,
    CONE: tl.constexpr,
    TOLERANCE: tl.constexpr,
):
    """`path.follow`: the weights, |x|, whether the path got stuck, and the ray."""
    zero = tl.sum(offsets * 0.0, 0)
    matrix, q, n = cosines, offsets, amounts
    qq, qn, nn = zero, zero, zero
    active = index < 0
    replaced = index < 0
    if CONE:
        matrix, q, n, qq, qn, nn, active = _pivoted(matrix, q, n, qq, qn, nn, active, index, tasks)
    reached = zero > 0.0
    stuck = zero > 0.0
    shaky = zero > 0.0
    amount = zero - float("inf")
    most = zero
    ray = offsets * 0.0
    slowest = amounts * (TOLERANCE * 0.1)
    steps = 10 * tasks + 50
    while steps > 0:
        steps -= 1
        copied = tl.sum(tl.where(active, tl.abs(n), 0.0), 0) * 1e-14
        corners = tl.where(n > slowest + (most + copied), q / n, float("inf"))
        nearest = tl.argmin(corners, 0)
        corner = _entry(tl.where(corners == float("inf"), 0.0, corners), index, nearest)
        corner = tl.where(tl.min(corners, 0) == float("inf"), float("inf"), corner)
        corner = tl.where(amount > corner, amount, corner)
        end = zero
        if TO_LENGTH:
            end = _root(-qq, -qn, -nn)
        amount = tl.where(corner < end, corner, end)
        if end <= corner:
            reached = zero == 0.0
            steps = steps * 0
        else:
            column = tl.sum(tl.where(index[None, :] == nearest, matrix, 0.0), 1)
            own = _entry(column, index, nearest)
            slow = _entry(slowest, index, nearest)
            most = tl.where(slow > most, slow, most)
            inside = _entry(active.to(tl.float64), index, nearest) > 0.0
            before = _entry(replaced.to(tl.float64), index, nearest) > 0.0
            mix = tl.where(active, -column, 0.0)
            bound = TOLERANCE * (1.0 + tl.sum(mix * mix, 0))
            bound = tl.where(before, bound * 0.125, bound)
            moving = zero == 0.0
            if (own <= 1e-2) & (inside == 0) & (own < bound):
                alone = tl.where(index == nearest, 1.0, tl.where(mix < 0.0, -mix, 0.0))
                apart = tl.sum(alone * times(cosines, alone), 0) > 4.0 * bound
                shrinks = mix * mix > tl.where(apart, 0.0, bound) * diagonal(matrix, index)
                shrinks = shrinks & (mix > 0.0)
                room = tl.where(shrinks, (q - amount * n) / tl.where(shrinks, mix, 1.0), float("inf"))
                if tl.min(room, 0) == float("inf"):
                    stuck = zero == 0.0
                    moving = zero > 0.0
                    ray = alone
                    steps = steps * 0
                else:
                    leaving = tl.argmin(room, 0)
                    replaced = replaced | (index == leaving)
                    matrix, q, n, qq, qn, nn, active = _pivoted(
                        matrix, q, n, qq, qn, nn, active, index, leaving
                    )
            if moving:
                shaky = shaky | (own < 1e-6)
                matrix, q, n, qq, qn, nn, active = _pivoted(matrix, q, n, qq, qn, nn, active, index, nearest)
                if shaky:
                    matrix, q, n, qq, qn, nn = made(cosines, offsets, amounts, active, index)
    amount = tl.where(tl.abs(amount) < float("inf"), amount, 0.0)
    on_the_way = tl.where(active, q - amount * n, 0.0)
    on_the_way = tl.where(on_the_way > 0.0, on_the_way, 0.0)
    # `path._refined`.
    weights = offsets * 0.0
    repairs = tasks + 1
    while repairs > 0:
        repairs -= 1
        _, q, n, qq, qn, nn = made(cosines, offsets, amounts, active, index)
        if TO_LENGTH:
            nu = _root(-qq, -qn, -nn)
            amount = tl.where(reached & (nu < float("inf")), nu, amount)
        weights = tl.where(active, q - amount * n, 0.0)
        lost = weights < 0.0
        if tl.sum(lost.to(tl.int32), 0) == 0:
            repairs = repairs * 0
        active = active & (lost == 0)
    weights = tl.where(weights < 0.0, 0.0, weights)
    square = tl.sum(weights * tl.where(active, amount * amounts - offsets, 0.0), 0)
    finite = tl.abs(weights) < float("inf")
    weights = tl.where(finite, weights, on_the_way)
    length = zero + 1.0
    if TO_LENGTH:
        length = tl.sqrt(tl.where(square > 1.0 - 1e-6, square, 1.0))
        weights = weights / length
    square = tl.where(square > 0.0, square, 0.0)
    return weights, tl.sqrt(square) / length, stuck, ray


@triton.jit
def gramian(gram, tasks, index):
    """A symmetric Gramian in float64, with zeros beyond the tasks."""
    within = (index[:, None] < tasks) & (index[None, :] < tasks)
    some = tl.load(gram + index[:, None] * tasks + index[None, :], mask=within, other=0.0)
    other = tl.load(gram + index[None, :] * tasks + index[:, None], mask=within, other=0.0)
    return (some.to(tl.float64) + other.to(tl.float64)) / 2.0


@triton.jit
def units(gram, index):
    """`path.units_of`."""
    squares = diagonal(gram, index)
    there = squares > 0.0
    squares = tl.where(there, squares, 1.0)
    inverse = tl.where(there, 1.0 / tl.sqrt(squares), 0.0)
    longest = tl.max(tl.where(there, squares, 0.0), 0)
    fading = tl.where(there, longest / squares * _FADING, 0.0) + 1.0
    cosines = gram * inverse[:, None] * inverse[None, :]
    cosines = tl.where(index[:, None] == index[None, :], fading[:, None], cosines)
    shares = inverse / fading
    most = tl.max(shares, 0)
    return cosines, inverse, shares / tl.where(most > 0.0, most, 1.0), there


@triton.jit
def ball(
    gram,
    vector,
    factor,
    out,
    tasks,
    C: tl.constexpr,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    TOLERANCE: tl.constexpr,
    N: tl.constexpr,
):
    """`worst_case.best_around`, or `best_in_ball`: weights and dual, [2, T].

    `vector` is the linear part (KIND 0) or the reference (KIND 1); the reference is the mean for KIND 2.
    """
    index = tl.arange(0, N)
    within = index < tasks
    exact = gramian(gram, tasks, index)
    number = tasks.to(tl.float64)
    if KIND == 2:
        centre = tl.where(within, 1.0 / number, 0.0)
    else:
        centre = tl.load(vector + index, mask=within, other=0.0)
    linear = centre
    radius = number * 0.0 + 1.0
    if KIND == 0:
        centre = linear * 0.0
    else:
        products = times(exact, centre)
        square = tl.sum(products * centre, 0)
        square = tl.where(square > 1e-16 * tl.sum(diagonal(exact, index), 0) / number, square, 0.0)
        radius = C * tl.sqrt(square)
        linear = products / tl.where(radius > 0.0, radius, 1.0)
        if SCALED:
            linear = linear * tl.load(factor)
    cosines, inverse, amounts, _ = units(exact, index)
    step, _, stuck, ray = _followed(cosines, amounts, linear * inverse, tasks, index, True, False, TOLERANCE)
    dual = tl.where(stuck, ray, step) * inverse
    total = tl.sum(dual, 0)
    some = total > 0.0
    dual = tl.where(some, dual / tl.where(some, total, 1.0), dual + 1.0 / number)
    tl.store(out + index, step * inverse * radius + centre, mask=within)
    tl.store(out + tasks + index, dual, mask=within)


@triton.jit
def cone(gram, out, tasks, C: tl.constexpr, TOLERANCE: tl.constexpr, N: tl.constexpr):
    """`worst_case.best_in_cone`: T + 1 weights, length and reach, [T + 3]."""
    index = tl.arange(0, N)
    last = index == tasks
    exact = gramian(gram, tasks, index)
    number = tasks.to(tl.float64)
    products = tl.sum(exact, 1) / number
    square = tl.sum(products, 0) / number
    length = tl.sqrt(tl.where(square > 0.0, square, 0.0))
    some = (length > 0.0).to(tl.float64)
    cosines, inverse, amounts, _ = units(exact, index)
    column = products * inverse / tl.where(length > 0.0, length, 1.0) * some
    cosines = tl.where(last[:, None] & (index < tasks)[None, :], column[None, :], cosines)
    cosines = tl.where(last[None, :] & (index < tasks)[:, None], column[:, None], cosines)
    offsets = -C * some * last.to(tl.float64)
    weights, reach, _, _ = _followed(cosines, amounts, offsets, tasks, index, True, True, TOLERANCE)
    weights = weights * tl.where(last, some, inverse)
    weights = weights / tl.where(reach > 0.0, reach, 1.0)
    tl.store(out + index, weights, mask=index <= tasks)
    tl.store(out + tasks + 1, length)
    tl.store(out + tasks + 2, reach)


@triton.jit
def hull(gram, out, tasks, TOLERANCE: tl.constexpr, N: tl.constexpr):
    """`hull.shortest_in_hull`: weights [T]."""
    index = tl.arange(0, N)
    cosines, inverse, amounts, there = units(gramian(gram, tasks, index), index)
    one = tl.where(there, 1.0, amounts * 0.0)
    weights, _, stuck, ray = _followed(cosines, one, -amounts, tasks, index, False, False, TOLERANCE)
    chosen = tl.where(stuck, ray, weights)
    total = tl.sum(chosen * amounts, 0)
    some = total > 0.0
    weights = chosen * inverse / tl.where(some, total, 1.0)
    whole = tl.sum(weights, 0)
    weights = tl.where(some, weights / tl.where(some, whole, 1.0), 1.0 / tasks.to(tl.float64))
    tl.store(out + index, weights, mask=index < tasks)


@triton.jit
def projected(
    gram,
    wanted,
    out,
    tasks,
    UNITS: tl.constexpr,
    RIDGE: tl.constexpr,
    TOLERANCE: tl.constexpr,
    N: tl.constexpr,
):
    """`projections.cone_projection`, or row `program_id` of `projections.cone_weights` (UNITS)."""
    index = tl.arange(0, N)
    within = index < tasks
    program = tl.program_id(0)
    exact = gramian(gram, tasks, index)
    cosines, inverse, _, there = units(exact, index)
    cosines = tl.where(index[:, None] == index[None, :], cosines + RIDGE, cosines)
    if UNITS:
        given = tl.where(index == program, 1.0, inverse * 0.0)
        parts = given
        most = tl.sum(given, 0)
    else:
        given = tl.load(wanted + index, mask=within, other=0.0)
        parts = given * tl.where(there, tl.sqrt(tl.where(there, diagonal(exact, index), 1.0)), 0.0)
        most = tl.max(parts, 0)
        parts = parts / tl.where(most > 0.0, most, 1.0)
    one = tl.where(there, 1.0, inverse * 0.0)
    added, _, _, _ = _followed(cosines, one, times(cosines, parts), tasks, index, False, False, TOLERANCE)
    if UNITS:
        tl.store(out + program * tasks + index, given + added, mask=within)
    else:
        tl.store(out + index, given + added * inverse * most, mask=within)
