"""The solvers of `simplex` and `bargaining` as Triton kernels: a solve is one launch instead of a thousand.

Same formulas and constants as there, in float64, by one program; vectors and matrices are padded to N, a
power of two. Padding holds zeros, but ones where something is divided by it. Steps end under the condition
under which the others stop on a CPU. Import this module where Triton is installed.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(pointer, index, tasks):
    return tl.load(pointer + index, mask=index < tasks, other=0.0)


@triton.jit
def _load_matrix(pointer, index, tasks):
    valid = index < tasks
    within = valid[:, None] & valid[None, :]
    return tl.load(pointer + index[:, None] * tasks + index[None, :], mask=within, other=0.0)


@triton.jit
def _diagonal(matrix, index):
    return tl.sum(tl.where(index[:, None] == index[None, :], matrix, 0.0), axis=1)


@triton.jit
def _add_diagonal(matrix, values, index):
    return tl.where(index[:, None] == index[None, :], matrix + values[:, None], matrix)


@triton.jit
def _times(matrix, vector):
    return tl.sum(matrix * vector[None, :], axis=1)


@triton.jit
def _solve(matrix, right, index, tasks):
    """Solve a positive definite system by elimination, L D L'. Padding of `right` comes back as it is."""
    matrix = _add_diagonal(matrix, tl.where(index < tasks, 0.0, 1.0), index)
    diagonal = _diagonal(matrix, index)
    pivots = diagonal
    for k in range(tasks):
        at = index == k
        row = tl.sum(tl.where(at[:, None], matrix, 0.0), axis=0)
        # What is left of a diagonal entry in the noise of its rounding has any sign.
        pivot = tl.sum(tl.where(at, tl.maximum(row, 1e-16 * diagonal), 0.0), axis=0)
        value = tl.sum(tl.where(at, right, 0.0), axis=0)
        pivots = tl.where(at, pivot, pivots)
        factor = tl.where(index > k, row / pivot, 0.0)
        matrix = matrix - factor[:, None] * row[None, :]
        right = right - factor * value
    right = right / pivots
    for j in range(tasks):
        at = index == tasks - 1 - j
        column = tl.sum(tl.where(at[None, :], matrix, 0.0), axis=1)
        value = tl.sum(tl.where(at, right, 0.0), axis=0)
        right = right - tl.where(index < tasks - 1 - j, column / pivots * value, 0.0)
    return right


@triton.jit
def _scaled(matrix, linear, normal, start, index, tasks, HAS_START: tl.constexpr, NEGLIGIBLE: tl.constexpr):
    valid = index < tasks
    squares = _diagonal(matrix, index)
    largest = tl.max(squares, axis=0)
    present = squares > largest * NEGLIGIBLE
    squares = tl.where(present, squares, tl.where(largest > 0.0, largest, 1.0))
    matrix = tl.where(present[:, None] & present[None, :], matrix, 0.0)
    matrix = _add_diagonal(matrix, tl.where(present | (index >= tasks), 0.0, squares), index)
    if not HAS_START:
        start = tl.where(valid, 1.0 / tl.sqrt(squares), 0.0)
    start = start / tl.sum(start * normal, axis=0)
    scale = tl.sum(start * _times(matrix, start), axis=0) + 1e-4 * tl.sum(start * start * squares, axis=0)
    matrix = _add_diagonal(matrix / scale, tl.where(valid, 1e-14 * (squares / scale), 0.0), index)
    root = tl.sqrt(scale)
    linear = tl.where(present, linear, tl.max(tl.abs(linear), axis=0) + root) / root
    return matrix, tl.where(valid, linear, 0.0), start, present & valid


@triton.jit
def _initial_dual(linear, product, start, index, tasks, FIRST: tl.constexpr):
    valid = index < tasks
    slope = linear + product
    lowest = tl.min(tl.where(valid, slope, float("inf")), axis=0)
    complementarity = tl.sum((slope - lowest) * start, axis=0) + 0.3
    level = complementarity / tasks
    z = tl.where(valid, level / tl.where(valid, start, 1.0), 0.0)
    return z, complementarity, FIRST * level


@triton.jit
def _step_length(w, new_w, z, new_z, index, tasks, TO_BOUNDARY: tl.constexpr):
    smaller = tl.minimum(new_w / w, new_z / tl.where(index < tasks, z, 1.0))
    worst = tl.min(tl.where(index < tasks, smaller, 1.0), axis=0)
    return TO_BOUNDARY / tl.maximum(1.0 - worst, TO_BOUNDARY)


@triton.jit
def _store_on_simplex(pointer, w, start, normal, present, index, tasks):
    w = tl.where(present, w, 0.0)
    w = w / tl.sum(w * normal, axis=0)
    broken = tl.sum(tl.where((tl.abs(w) < float("inf")) | (index >= tasks), 0, 1), axis=0)
    tl.store(pointer + index, tl.where(broken == 0, w, start), mask=index < tasks)


@triton.jit
def root_kernel(
    matrix_pointer, linear_pointer, normal_pointer, start_pointer, result_pointer, tasks, iterations,
    N: tl.constexpr, HAS_START: tl.constexpr, BOUND: tl.constexpr, NEGLIGIBLE: tl.constexpr,
    FIRST: tl.constexpr, FLOOR: tl.constexpr, TO_BOUNDARY: tl.constexpr, SMOOTHING: tl.constexpr,
    PENALTY: tl.constexpr,
):  # fmt: skip
    """`solvers.simplex.minimise_root`."""
    index = tl.arange(0, N)
    valid = index < tasks
    normal, start = _load(normal_pointer, index, tasks), _load(start_pointer, index, tasks)
    matrix, linear, start, present = _scaled(
        _load_matrix(matrix_pointer, index, tasks), _load(linear_pointer, index, tasks), normal, start,
        index, tasks, HAS_START, NEGLIGIBLE,
    )  # fmt: skip
    product = _times(matrix, start)
    z, complementarity, target = _initial_dual(linear, product, start, index, tasks, FIRST)
    previous = tl.sqrt(tl.sum(start * product, axis=0) + complementarity * SMOOTHING / tasks)
    w = tl.where(valid, start, 1.0)
    left = iterations
    while left > 0:
        smooth = tl.sum(w * product, axis=0) + complementarity * SMOOTHING / tasks
        norm = tl.sqrt(smooth)
        z = z * (norm / previous)
        previous = norm
        slope = product / norm
        gradient = product * (tl.sum(w * product, axis=0) / smooth) + linear * norm
        penalty = PENALTY + PENALTY * smooth + norm * tl.abs(PENALTY * tl.sum(linear * w, axis=0))
        multiplier = penalty + tl.sum(w * gradient, axis=0) / tl.sum(w * normal, axis=0)
        ratio = z / w
        hessian = matrix + penalty * normal[:, None] * normal[None, :] - slope[:, None] * slope[None, :]
        centre = z + tl.where(valid, target / w, 0.0)
        right = centre - gradient + normal * multiplier
        new_w = _solve(_add_diagonal(hessian, ratio, index), tl.where(valid, right, 1.0), index, tasks)
        new_z = tl.where(valid, centre - ratio * new_w, 0.0)
        step = _step_length(w, new_w, z, new_z, index, tasks, TO_BOUNDARY)
        new_product = _times(matrix, new_w)
        stretch = tl.sum((new_w - w) * (new_product - product), axis=0)
        furthest = tl.sqrt(smooth / tl.where(stretch > 0.0, stretch, 1.0))
        step = tl.where(stretch > 0.0, tl.minimum(step, furthest), step)
        w = w + step * (new_w - w)
        z = z + step * (new_z - z)
        product = product + step * (new_product - product)
        complementarity = tl.sum(w * z, axis=0)
        target = FLOOR + complementarity * (1.0 - step) * (1.0 - step) / tasks
        left = tl.where(complementarity / norm > BOUND, left - 1, 0)
    _store_on_simplex(result_pointer, w, start, normal, present, index, tasks)


@triton.jit
def quadratic_kernel(
    matrix_pointer, result_pointer, tasks, iterations, N: tl.constexpr, BOUND: tl.constexpr,
    NEGLIGIBLE: tl.constexpr, FIRST: tl.constexpr, FLOOR: tl.constexpr, TO_BOUNDARY: tl.constexpr,
    PENALTY: tl.constexpr,
):  # fmt: skip
    """`solvers.simplex.minimise_quadratic`."""
    index = tl.arange(0, N)
    valid = index < tasks
    matrix = _load_matrix(matrix_pointer, index, tasks)
    zeros = _diagonal(matrix, index) * 0.0
    normal = tl.where(valid, zeros + 1.0, zeros)
    matrix, _, start, present = _scaled(matrix, zeros, normal, zeros, index, tasks, False, NEGLIGIBLE)
    z, complementarity, target = _initial_dual(zeros, _times(matrix, start), start, index, tasks, FIRST)
    penalised = matrix + PENALTY * normal[:, None] * normal[None, :]
    w = tl.where(valid, start, 1.0)
    left = iterations
    while left > 0:
        ratio = z / w
        centre = z + tl.where(valid, target / w, 0.0)
        right = tl.where(valid, centre + PENALTY * normal, 1.0)
        new_w = _solve(_add_diagonal(penalised, ratio, index), right, index, tasks)
        new_z = tl.where(valid, centre - ratio * new_w, 0.0)
        step = _step_length(w, new_w, z, new_z, index, tasks, TO_BOUNDARY)
        w = w + step * (new_w - w)
        z = z + step * (new_z - z)
        complementarity = tl.sum(w * z, axis=0)
        target = FLOOR + complementarity * (1.0 - step) * (1.0 - step) / tasks
        left = tl.where(complementarity > BOUND, left - 1, 0)
    _store_on_simplex(result_pointer, w, start, normal, present, index, tasks)


@triton.jit
def _bargaining_steps(matrix, a, index, tasks, iterations, TO_BOUNDARY: tl.constexpr, BOUND: tl.constexpr):
    valid = index < tasks
    left = iterations
    while left > 0:
        product = _times(matrix, a)
        total = tl.sum(tl.where(valid, a * product, 0.0), axis=0)
        radial = tl.sqrt(tasks / total)
        a = tl.where(valid, a * radial, 1.0)
        inverse = 1.0 / a
        gradient = tl.where(valid, product * radial - inverse, 0.0)
        hessian = _add_diagonal(matrix, tl.where(valid, inverse * inverse, 0.0), index)
        newton = _solve(hessian, gradient, index, tasks)
        relative = newton * inverse
        furthest = tl.max(relative, axis=0)
        a = a - newton * (TO_BOUNDARY / tl.maximum(furthest, TO_BOUNDARY))
        left = tl.where(tl.max(tl.abs(relative), axis=0) > BOUND, left - 1, 0)
    return a


@triton.jit
def _violation(matrix, a, index, tasks):
    violated = tl.abs(_times(matrix, a) * a - 1.0)
    violated = tl.where(violated < float("inf"), violated, float("inf"))  # tl.max passes over NaN
    return tl.max(tl.where(index < tasks, violated, 0.0), axis=0)


@triton.jit
def bargaining_kernel(
    matrix_pointer, result_pointer, tasks, iterations, N: tl.constexpr, RIDGE: tl.constexpr,
    BOUND: tl.constexpr, SOLVED: tl.constexpr, TO_BOUNDARY: tl.constexpr, WITHOUT_RIDGE: tl.constexpr,
):  # fmt: skip
    """`solvers.bargaining.bargaining_weights` for alpha = 1, where each task alone would weigh 1 / |g|."""
    index = tl.arange(0, N)
    valid = index < tasks
    matrix = _load_matrix(matrix_pointer, index, tasks)
    squares = _diagonal(matrix, index)
    present = squares > 0.0
    alone = 1.0 / tl.sqrt(tl.where(present, squares, 1.0))
    matrix = tl.where(present[:, None] & present[None, :], matrix * alone[:, None] * alone[None, :], 0.0)
    matrix = _add_diagonal(matrix, tl.where(valid & (squares <= 0.0), 1.0, 0.0), index)
    ridged = _add_diagonal(matrix, tl.where(valid, RIDGE + squares * 0.0, 0.0), index)
    a = _bargaining_steps(ridged, 1.0 + squares * 0.0, index, tasks, iterations, TO_BOUNDARY, BOUND)
    violated = _violation(matrix, a, index, tasks)
    steps = tl.where(violated > SOLVED, WITHOUT_RIDGE, 0)
    exact = _bargaining_steps(matrix, a, index, tasks, steps, TO_BOUNDARY, 0.0)
    better = _violation(matrix, exact, index, tasks) < 0.01 * violated
    a = tl.where(better, exact, a)
    tl.store(result_pointer + index, tl.where(present, a * alone, 0.0), mask=valid)
