"""The best worst-case improvement in a ball around a reference gradient (CAGrad) or in a cone (ConicGrad).

Both problems maximise nu subject to g_i.x + linear_i >= nu and |x| <= 1. Divided by |g_i|, these constraints
are those of a path (see `path`) with amounts 1 / |g_i| and offsets linear_i / |g_i|, which ends at |x| = 1.
"""

from typing import Any

import torch
from torch import Tensor

from mtrl.combiners.solvers import operations as op
from mtrl.combiners.solvers.backends import (
    MOST_TASKS,
    by_numpy,
    has_numbers,
    padded,
    portable,
    problem,
    solve,
    symmetric,
)
from mtrl.combiners.solvers.gramian import divisor
from mtrl.combiners.solvers.operations import Array
from mtrl.combiners.solvers.path import follow, or_one, tolerance_of, units_of

# |g0|^2 below this part of the square of the sum of w_i |g_i| is the rounding error of its sum, four units.
_NO_LENGTH = 1e-15
_LEAST_COSINE = 1e-8  # lower bound of c; with c = 0 the shortest x is zero where gradients cancel


def best_around(
    gram: Tensor, reference: Tensor, c: float, *, eps: float, factor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Solve max_d min_i g_i.d in |d - g0| <= c |g0|; returns the weights of d and the dual [T], float64.

    g0 = reference @ G for the weights `reference` [T]. With d = g0 + c |g0| x the problem is that of
    `in_ball` with linear_i = g_i.g0 / (c |g0|), which is multiplied by `factor` [1].
    """
    vectors = [reference] if factor is None else [reference, factor]
    numbers = (c, tolerance_of(eps), float(factor is not None))
    weights, dual = solve("around", gram, vectors, numbers)
    return weights, dual


@problem("around", lambda tasks: (2, tasks), MOST_TASKS)
def _around(gram: Array, centre: Array, *given: Any) -> Array:
    (*factor, c, tolerance, has_factor) = given
    return by_numpy(around, gram, centre, float(factor[0][0]) if has_factor else 1.0, c, tolerance)


def around(
    gram: Array, centre: Array, tasks: int, factor: float, c: float, tolerance: float
) -> tuple[Array, Array]:
    """Return the weights of `best_around` and the dual."""
    linear, radius = gains(gram, centre, tasks, c)
    step, dual = in_ball(gram, linear * factor, tasks, tolerance)
    return step * radius + centre, dual


def gains(gram: Any, centre: Any, tasks: int, c: float) -> tuple[Any, Any]:
    """Return g_i.g0 over the radius c |g0| [N], for g0 = centre @ G, and this radius; arrays or tensors."""
    products, length = products_with(gram, centre, tasks)
    radius = c * length
    return products / (radius + (radius == 0.0)), radius


def products_with(gram: Any, centre: Any, tasks: int) -> tuple[Any, Any]:
    """Return g_i.g0 [N] for g0 = centre @ G, and |g0|, 0 if only rounding is left; arrays or tensors."""
    products = op.times(gram, centre)
    square = op.total(products * centre)
    most = op.total(centre * op.root(abs(op.diagonal(gram))))  # |g0| without angles
    return products, op.root(square * (square > _NO_LENGTH * most * most))


def around_gap(
    gram: Tensor, reference: Tensor, c: float, weights: Tensor, dual: Tensor, factor: Tensor | None = None
) -> Tensor:
    """Return `ball_gap` of the direction of these weights [T] around g0 (see `best_around`), a 0-dim tensor.

    0 where g0, and so the ball, vanishes by the Gramian's rounding.
    """
    tasks = len(gram)
    exact = symmetric(gram.detach().to(torch.float64))
    centre = reference.detach()
    if has_numbers(gram):
        # In the solver's arithmetic: where g0 nearly cancels, another rounding of g_i.g0 is another problem.
        linear, radius = gains(padded(exact.numpy()), padded(centre.numpy()), tasks, c)
        linear, radius = torch.from_numpy(linear[:tasks]), torch.as_tensor(radius)
    else:
        linear, radius = gains(exact, centre, tasks, c)
    step = (weights - centre) / torch.where(radius > 0.0, radius, torch.inf)
    gap = ball_gap(gram, linear if factor is None else linear * factor, step, dual)
    return torch.where(radius > 0.0, gap, 0.0)


def in_ball(gram: Array, linear: Array, tasks: int, tolerance: float) -> tuple[Array, Array]:
    """Solve max over |x| <= 1 of min_i (g_i.x + linear_i), for the Gramian [N, N] and linear [N].

    CAGrad's problem with x = (d - g0) / (c |g0|) and linear = g_i.g0 / (c |g0|). Its dual minimises |g_w| +
    linear . w over the simplex. Zero gradients do not enter the minimum (see `units_of`). Where gradients
    cancel, several x are optimal. The shortest of them is returned; it is shorter than 1. Returns the weights
    of x and the dual, a point of the simplex.
    """
    cosines, inverse, amounts, _ = units_of(gram)
    step, dual, _ = follow(cosines, amounts, linear * inverse, tasks, True, False, tolerance)
    dual = dual * inverse
    whole = op.total(dual)
    return step * inverse, op.where(whole > 0.0, dual / or_one(whole), 1.0 / op.real(tasks))


def ball_gap(gram: Tensor, linear: Tensor, solution: Tensor, dual: Tensor) -> Tensor:
    """Bound how far the step `solution` [T] is from the best, relative to the mean norm under `dual` [T].

    The dual's value at `dual` less the worst improvement that the step gives, a 0-dim tensor.
    """
    squares = gram.diagonal().clamp(min=0.0)
    bound = torch.dot(dual, linear) + torch.dot(dual, gram @ dual).clamp(min=0.0).sqrt()
    worst = torch.where(squares > 0.0, linear + gram @ solution, torch.inf).amin()
    scale = torch.dot(dual, squares.sqrt())
    return torch.where(scale > 0.0, (bound - worst) / divisor(scale), 0.0)


def best_in_cone(gram: Tensor, c: float, *, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Solve max of min_i g_i.x over the cap |x| <= 1, e0.x >= c, for the Gramian [T, T] and e0 = g0 / |g0|.

    On the path, e0 is one more task of amount 0 and offset -c, so that every nu requires e0.x >= c. Zero
    gradients do not enter the minimum. Where gradients cancel, several x are optimal, and the shortest of
    them is stretched to length 1. It stays in the cone, and no direction harms the worst task less per
    progress along g0.

    Returns the weights [T + 1] of x, float64, >= 0, those of the gradients and, last, of e0; |g0|; and the
    length of x before it was stretched, below 1 where gradients cancel.
    """
    found = solve("cone", gram, numbers=(max(c, _LEAST_COSINE), tolerance_of(eps)))
    return found[:-2], found[-2], found[-1]


@portable("cone", lambda tasks: (tasks + 3,), MOST_TASKS - 1)  # its mean gradient is one more
def cone(gram: Array, tasks: int, c: float, tolerance: float) -> Array:
    """Return what `best_in_cone` returns, in one vector: weights, |g0|, and the length before stretching."""
    cosines, inverse, amounts, _ = units_of(gram)
    index = op.indices(amounts)
    last = index == tasks
    mean = op.where(index < tasks, 1.0 / op.real(tasks), 0.0)
    products, length = products_with(gram, mean, tasks)
    some = op.select(length > 0.0, op.real(1.0), op.real(0.0))
    beside = op.where(last, 1.0, products * inverse / or_one(length) * some)
    offsets = op.where(last, -c * some, 0.0)
    weights, _, reach = follow(
        op.joined(cosines, beside, tasks), amounts, offsets, tasks + 1, True, True, tolerance
    )
    weights = weights * op.where(last, some, inverse) / or_one(reach)
    found: Array = op.where(index == tasks + 1, length, op.where(index == tasks + 2, reach, weights))
    return found


def cone_gap(gram: Tensor, c: float, solution: Tensor) -> Tensor:
    """Bound how far x of weights `solution` [T + 1], not stretched, is from the best in the cap.

    Returns the violation of the optimality conditions in units of the mean norm under `solution`, a 0-dim
    tensor. The conditions: tasks with a weight gain the same and no task gains less; e0.x >= c, and e0.x = c
    where e0 has a weight.
    """
    squares = gram.diagonal().clamp(min=0.0)
    products, length = products_with(gram, torch.full_like(solution[:-1], 1.0 / len(gram)), len(gram))
    column = products / divisor(length)
    tasks, eta = solution[:-1], solution[-1]
    gains = gram @ tasks + eta * column
    worst = torch.where(squares > 0.0, gains, torch.inf).amin()
    along = torch.dot(column, tasks) + eta * (length > 0.0) - max(c, _LEAST_COSINE)
    total = tasks.sum()
    some = total > 0.0
    # Scaled to the simplex, because weights are huge where gradients nearly cancel.
    shares, lift = tasks / divisor(total), eta / divisor(total)
    missed = torch.dot(shares, gains - torch.where(some, worst, 0.0)) + lift * along.clamp(min=0.0)
    missed = missed + along.clamp(max=0.0).abs() * (length > 0.0)
    scale = torch.dot(shares, squares.sqrt())
    return torch.where(some, missed / divisor(scale), 0.0)
