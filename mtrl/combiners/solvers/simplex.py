"""Minimisation over the probability simplex by at most a fixed number of interior-point steps, on the device.

Covers the two objectives of the min-max methods, both for a positive semi-definite M:

    root         F(w) = sqrt(w'Mw) + q'w      (CAGrad, ConicGrad)
    quadratic    F(w) = 1/2 w'Mw              (MGDA; SDMGrad after shifting the gradients)

Both are homogeneous in w, so a penalty that only sets the scale of w replaces the constraint sum(w) = 1 and
leaves one Cholesky solve with one right-hand side per step. How far a step goes sets the centring of the next
one, which saves a predictor. On a CPU a solve costs the number of its small tensor calls (35 and 25 per step,
about a microsecond and a half each), hence the vectors instead of columns and no batch dimension: use
torch.vmap.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtrl.combiners.solvers import fused as _fused
from mtrl.combiners.solvers.traced import chunks, converged, traced

_TO_BOUNDARY = 0.995  # share of the way to the boundary that a step may use
_FIRST = 0.1  # reduction of the complementarity that the first step aims at
_FLOOR = 1e-15  # complementarity at which progress is lost in rounding
_SMOOTHING = 1.0  # the root is taken of w'Mw + smoothing * complementarity: steps jam without it at w'Mw -> 0
_PENALTY = 10.0  # weight of (sum(w) - 1)^2 in units of the objective: a lighter one lets w drift off in scale
_CONVERGED = 1e-13  # complementarity below which F is known to rounding level
_CHUNK = (8, 2)  # steps before the first look at the complementarity and between two
_NEGLIGIBLE = 1e-20  # a row whose squared norm is below this share of the largest one counts as zero
_FOR_KERNELS = {
    "NEGLIGIBLE": _NEGLIGIBLE,
    "FIRST": _FIRST,
    "FLOOR": _FLOOR,
    "TO_BOUNDARY": _TO_BOUNDARY,
    "PENALTY": _PENALTY,
}


class _Problem(NamedTuple):
    """A problem in units in which F is of order one near the solution, whatever the spread of the norms."""

    matrix: Tensor  # [T, T], zero rows replaced by orthogonal ones
    linear: Tensor  # [T]
    normal: Tensor  # [T], the constraint is normal'w = 1
    start: Tensor  # [T]
    present: Tensor  # [T] bool, the rows that were not zero


def minimise_root(
    matrix: Tensor,
    linear: Tensor,
    *,
    normal: Tensor | None = None,
    start: Tensor | None = None,
    iterations: int | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Return the minimiser w [T] in float64 of sqrt(w'Mw) + q'w over w >= 0, normal'w = 1; M [T, T], q [T].

    `normal` [T] holds ones (the default, the simplex) and zeros (coordinates that the constraint leaves
    free). `start` [T] is positive and of any scale; by default it suits a linear term that is no larger than
    the root. `eps` is the rounding error of M's entries: below a thousandth of it steps no longer pay. Rows
    of M that are zero (their task has no gradient) get weight 0 unless all are. Finite for
    every finite input; reads nothing back to the host.
    """
    with torch.no_grad():
        normal = torch.ones_like(linear) if normal is None else normal
        steps, bound = iterations or _enough(matrix.shape[-1]), max(_CONVERGED, 1e-3 * eps)
        if _fused.usable(matrix):
            more = {**_FOR_KERNELS, "SMOOTHING": _SMOOTHING, "BOUND": bound}
            return _fused.minimise_root(matrix, linear, normal, start, steps, **more)
        tensors = (matrix, linear, normal) if start is None else (matrix, linear, normal, start)
        scaled, slope, normal, first, present, *state = _begin_root(*tensors)
        for count in chunks(steps, *_CHUNK):
            state = _root_steps(scaled, slope, normal, *state, count=count)
            # Under the root the complementarity counts for more the shorter the norm is.
            if converged(state[-2] / state[-3], bound):
                break
        return _finished(state[0], first, present, normal)


def minimise_quadratic(matrix: Tensor, *, iterations: int | None = None) -> Tensor:
    """Return the minimiser w [T] in float64 of w'Mw over the simplex for M [T, T]: the min-norm point.

    Zero rows of M get weight 0 unless all are. Finite for every finite M; reads nothing back to the host.
    """
    with torch.no_grad():
        steps = iterations or _enough(matrix.shape[-1])
        if _fused.usable(matrix):
            return _fused.minimise_quadratic(matrix, steps, **_FOR_KERNELS, BOUND=_CONVERGED)
        scaled, _, normal, first, present, *state = _begin_quadratic(matrix)
        for count in chunks(steps, *_CHUNK):
            state = _quadratic_steps(scaled, normal, *state, count=count)
            if converged(state[-2], _CONVERGED):
                break
        return _finished(state[0], first, present, normal)


def project(point: Tensor) -> Tensor:
    """Return the point of the simplex nearest to `point` [T] (Euclidean)."""
    descending = point.sort(descending=True).values
    excess = descending.cumsum(0) - 1.0
    rank = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    kept = (descending * rank > excess).sum().clamp(min=1)
    return (point - excess.gather(0, kept.view(1) - 1) / kept).clamp(min=0.0)


def relative_gap(matrix: Tensor, linear: Tensor, w: Tensor, normal: Tensor | None = None) -> Tensor:
    """Bound how far w is from minimising sqrt(w'Mw) + q'w, relative to sum_i w_i sqrt(M_ii): a 0-dim tensor.

    On the simplex it is the duality gap; free coordinates (see `minimise_root`) add their violation of
    optimality.
    """
    product = matrix @ w
    norm = (w @ product).clamp(min=0.0).sqrt()
    scale = w @ matrix.diagonal().clamp(min=0.0).sqrt()
    slope = linear + product / torch.where(norm > 0.0, norm, 1.0)
    held = torch.ones_like(w, dtype=torch.bool) if normal is None else normal > 0.0
    lowest = torch.where(held, slope, torch.inf).amin()
    below = torch.where(held, 0.0, -slope).clamp(min=0.0).sum()
    return (w @ slope - lowest + below) / torch.where(scale > 0.0, scale, 1.0)


def rounded_norm(matrix: Tensor, w: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return sqrt(w'Mw), or its rounding error if larger, for entries of M of the relative error eps.

    Below that the norm is noise, and dividing by it would amplify noise to full length. 1 where all is zero.
    The second result says whether the norm is above that error.
    """
    bound = torch.dot(w, matrix.diagonal().clamp(min=0.0).sqrt()) * (len(w) * eps) ** 0.5
    exact = torch.dot(w, matrix @ w).clamp(min=0.0).sqrt()
    norm = exact.maximum(bound)
    return torch.where(norm > 0.0, norm, 1.0), exact > bound


def _enough(rows: int) -> int:
    """Steps after which the objective's error is at rounding level, but for norms spread over six decades."""
    return min(17 + rows // 6, 26)


def _scaled(matrix: Tensor, linear: Tensor | None, normal: Tensor, start: Tensor | None = None) -> _Problem:
    matrix = matrix.to(torch.float64)
    squares = matrix.diagonal()
    largest = squares.amax()
    present = squares > largest * _NEGLIGIBLE
    squares = torch.where(present, squares, torch.where(largest > 0.0, largest, 1.0))
    unit = torch.eye(len(squares), dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(present & present.unsqueeze(-1), matrix, unit * squares)
    start = squares.rsqrt() if start is None else start
    normal = normal.to(torch.float64)
    start = start / torch.dot(start, normal)
    scale = torch.dot(start, matrix @ start) + 1e-4 * torch.dot(start * start, squares)
    # A tiny relative ridge keeps the factorisation alive when rows repeat.
    matrix = torch.addcmul(matrix / scale, unit, squares / scale, value=1e-14)
    if linear is None:
        linear = torch.zeros_like(start)
    else:
        root = scale.sqrt()
        linear = linear.to(torch.float64)
        linear = torch.where(present, linear, linear.abs().amax() + root) / root
    return _Problem(matrix, linear, normal, start, present)


@traced
def _finished(w: Tensor, start: Tensor, present: Tensor, normal: Tensor) -> Tensor:
    w = torch.where(present, w, 0.0)
    w = w / torch.dot(w, normal)
    return torch.where(w.isfinite().all(), w, start)


@traced
def _begin_root(matrix: Tensor, linear: Tensor, normal: Tensor, start: Tensor | None = None) -> list[Tensor]:
    """Return the problem's five tensors, then the six that `_root_steps` goes on from."""
    problem = _scaled(matrix, linear, normal, start)
    product = problem.matrix @ problem.start
    z, complementarity, target = _initial_dual(problem, product)
    norm = torch.add(
        torch.dot(problem.start, product), complementarity, alpha=_SMOOTHING / len(product)
    ).sqrt()
    return [*problem, problem.start, z, product, norm, complementarity, target]


@traced
def _begin_quadratic(matrix: Tensor) -> list[Tensor]:
    """Return the problem's five tensors, then the four that `_quadratic_steps` goes on from."""
    problem = _scaled(matrix, None, torch.ones_like(matrix[0]))
    return [*problem, problem.start, *_initial_dual(problem, problem.matrix @ problem.start)]


def _initial_dual(problem: _Problem, product: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First multipliers z, w'z and the first product of a pair to aim at."""
    slope = problem.linear + product
    complementarity = torch.dot(slope - slope.amin(), problem.start) + 0.3
    level = complementarity / len(slope)
    return level / problem.start, complementarity, _FIRST * level


@traced
def _root_steps(
    matrix: Tensor,
    linear: Tensor,
    normal: Tensor,
    w: Tensor,
    z: Tensor,
    product: Tensor,
    previous: Tensor,
    complementarity: Tensor,
    target: Tensor,
    *,
    count: int,
) -> list[Tensor]:
    # Primal-dual Newton steps on grad F = z + nu normal, w z = target. Stationarity is multiplied by the norm
    # t, so z is t times the multiplier and follows t from step to step.
    tasks = len(w)
    unit, one, floor, longest = _constants(w)
    smoothing = _SMOOTHING / tasks
    lightest, heavy, constraint = one * _PENALTY, linear * _PENALTY, torch.outer(normal, normal)
    for _ in range(count):
        square = torch.dot(w, product)
        smooth = torch.add(square, complementarity, alpha=smoothing)
        norm = smooth.sqrt()
        z = z * (norm / previous)
        previous = norm
        slope = product / norm
        # H w, which Newton's equation for the new w (rather than for the step) takes off the gradient,
        # leaves:
        gradient = torch.addcmul(product * (square / smooth), linear, norm)
        level = torch.add(lightest, smooth, alpha=_PENALTY)
        penalty = torch.addcmul(level, norm, torch.dot(heavy, w).abs())
        penalised = torch.addcmul(matrix, constraint, penalty)
        multiplier = torch.addcdiv(penalty, torch.dot(w, gradient), torch.dot(w, normal))
        ratio = z / w
        hessian = torch.addcmul(torch.addr(penalised, slope, slope, alpha=-1.0), unit, ratio)
        centre = torch.addcdiv(z, target, w)
        new_w = _solve(hessian, torch.addcmul(centre - gradient, normal, multiplier))
        new_z = torch.addcmul(centre, ratio, new_w, value=-1.0)
        step = _step_length(w, new_w, z, new_z, one, longest)
        # F has a cone's tip where w'Mw = 0; a step longer than the distance to it would jump across.
        new_product = matrix @ new_w
        stretch = torch.dot(new_w - w, new_product - product)
        step = torch.fmin(step, (smooth / stretch).sqrt())
        w = torch.lerp(w, new_w, step)
        z = torch.lerp(z, new_z, step)
        product = torch.lerp(product, new_product, step)
        complementarity = torch.dot(w, z)
        target = torch.addcmul(floor, complementarity, (one - step).square(), value=1.0 / tasks)
    return [w, z, product, previous, complementarity, target]


@traced
def _quadratic_steps(
    matrix: Tensor,
    normal: Tensor,
    w: Tensor,
    z: Tensor,
    complementarity: Tensor,
    target: Tensor,
    *,
    count: int,
) -> list[Tensor]:
    tasks = len(w)
    unit, one, floor, longest = _constants(w)
    penalised = torch.addr(matrix, normal, normal, alpha=_PENALTY)
    pull = _PENALTY * normal
    for _ in range(count):
        ratio = z / w
        centre = torch.addcdiv(z, target, w)
        new_w = _solve(torch.addcmul(penalised, unit, ratio), centre + pull)
        new_z = torch.addcmul(centre, ratio, new_w, value=-1.0)
        step = _step_length(w, new_w, z, new_z, one, longest)
        w = torch.lerp(w, new_w, step)
        z = torch.lerp(z, new_z, step)
        complementarity = torch.dot(w, z)
        target = torch.addcmul(floor, complementarity, (one - step).square(), value=1.0 / tasks)
    return [w, z, complementarity, target]


def _constants(like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one = torch.ones((), dtype=like.dtype, device=like.device)
    unit = torch.eye(len(like), dtype=like.dtype, device=like.device)
    return unit, one, one * _FLOOR, one * _TO_BOUNDARY


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor = torch.linalg.cholesky_ex(matrix, check_errors=False)[0]
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)


def _step_length(w: Tensor, new_w: Tensor, z: Tensor, new_z: Tensor, one: Tensor, longest: Tensor) -> Tensor:
    worst = torch.minimum(new_w / w, new_z / z).min()
    return longest / torch.fmax(one - worst, longest)
