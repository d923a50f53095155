"""The shortest vector in the convex hull of the task gradients, with or without a cap on the weights.

Without a cap it is the end of a path (`shortest_in_hull`). With a cap, a path would have to decide which caps
bind, which rounding errors can turn round where gradients depend on each other. `shortest_capped` uses
interior-point steps instead, which need no such decision and solve about fifteen small systems.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.combiners.solvers.backends import Backend, backend_of
from mtrl.combiners.solvers.path import follow, tolerance_of, units_of

_STEPS = 40  # 6 to 30 are needed; only dependent gradients in float32 took up to 40
_TO_BOUNDARY = 0.995  # share of the way to the nearest bound that a step may use
# Steps end at this gap, relative to the objective plus one. In the units of `_solve`, 1 is the squared length
# of the shortest gradient.
_SOLVED = 1e-16
_ROOM = 1e-9  # if the sum of the caps exceeds 1 by less than this, all caps bind


def shortest_in_hull(gram: Tensor, *, eps: float) -> Tensor:
    """Return the minimiser w [T] in float64 of |g_w| over the simplex, for the Gramian [T, T].

    By duality g_w = x / |x|^2 for the shortest x with g_i.x >= 1 for all tasks. The path of `follow` with
    amounts 1 and offsets -1 / |g_i| requires g_i.x >= 1 + nu |g_i| and ends at nu = 0. Tasks with short
    gradients, which weigh most, enter first. Where gradients cancel, the path gets stuck earlier, and the
    weights that cancel them are the solution, with g_w = 0. Zero gradients weigh nothing (see `units_of`).
    `eps` is the relative rounding error of the Gramian's entries.
    """
    backend = backend_of(gram)
    with backend.quiet():
        units = units_of(backend, backend.gramian(gram))
        there = backend.xp.where(units.inverse > 0.0, 1.0, units.inverse * 0.0)
        end = follow(
            backend, units.cosines, there, -units.amounts, to_length=False, tolerance=tolerance_of(eps)
        )
        chosen = backend.select(end.stuck, end.ray, end.weights)
        total = (chosen * units.amounts).sum()
        some = total > 0.0
        weights = chosen * units.inverse / backend.select(some, total, total + 1.0)
        weights = weights / backend.select(some, weights.sum(), total + 1.0)
        return backend.tensor(backend.select(some, weights, weights * 0.0 + 1.0 / len(weights)))


def project(point: Tensor) -> Tensor:
    """Return the point of the simplex nearest to `point` [T] (Euclidean): max(point - s, 0) of sum 1.

    s is (sum of the k largest entries - 1) / k for the largest k whose entries all stay positive.
    """
    # The constraint sum = 1 is lost beside numbers above 1e16; only differences of the entries count.
    point = point - point.amax()
    descending = point.sort(descending=True).values
    excess = descending.cumsum(0) - 1.0
    rank = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    kept = (descending * rank > excess).sum().clamp(min=1)
    return (point - excess.gather(0, kept.view(1) - 1) / kept).clamp(min=0.0)


def shortest_capped(gram: Tensor, cap: float, *, eps: float) -> Tensor:
    """Return the minimiser w [T] in float64 of |g_w| over the simplex with w_t <= cap, for a Gramian [T, T].

    For unit gradients with cosines C and a_i = 1 / |g_i|, the weights w_i = a_i v_i solve

        min v'Cv / 2    subject to  a'v = 1,  v >= 0,  t = cap / a - v >= 0.

    With z and y the multipliers of v and t, the optimum has Cv - nu a = z - y and v z = t y = 0. Mehrotra's
    predictor-corrector steps (SIAM J. Optimization 2, 1992) start at a strictly feasible point, keep the
    equations and lower these products. The sum of the products bounds the gap of v'Cv / 2.

    A cap of 1 / T or less gives every task 1 / T. Zero gradients weigh what the caps of the others leave.
    Gradients fade out on the way to zero (see `units_of`). `eps` is the relative rounding error of the
    Gramian's entries.
    """
    tasks = len(gram)
    backend = backend_of(gram)
    with backend.quiet():
        xp = backend.xp
        units = units_of(backend, backend.gramian(gram))
        there = xp.where(units.inverse > 0.0, 1.0, units.inverse * 0.0)
        number = there.sum()
        some = backend.larger(number, number * 0.0 + 1.0)
        room = number * max(cap, 1.0 / tasks) - 1.0
        bound = backend.larger(room, number * 0.0) + 1.0  # the cap times the number of tasks with a gradient
        mixed = there / some
        if not backend.known(room <= _ROOM):
            solved = _solve(backend, units.cosines, units.amounts, bound / some, there, tolerance_of(eps))
            mixed = backend.select(room > _ROOM, solved, mixed)
        mixed = mixed * (1.0 + backend.smaller(room, room * 0.0))
        rest = (1.0 - mixed.sum()) / backend.larger(tasks - number, number * 0.0 + 1.0)
        return backend.tensor(mixed + (1.0 - there) * backend.larger(rest, rest * 0.0))


class _Point(NamedTuple):
    """An iterate of the steps, or a step itself."""

    v: Any
    t: Any
    z: Any
    y: Any
    nu: Any


def _solve(backend: Backend, cosines: Any, amounts: Any, cap: Any, there: Any, ridge: float) -> Any:
    xp = backend.xp
    absent = there == 0.0
    own = xp.where(absent, 1.0, amounts)
    # Equal weights at first. Zero gradients have no part in a'v = 1, so that their v goes to 0.
    v = there / (own * there.sum()) + absent * 0.5
    t = xp.where(absent, 0.5, cap / own - v)
    point = _start(backend, cosines, amounts, v, t)
    for _ in range(_STEPS):
        gap = (point.v * point.z).sum() + (point.t * point.y).sum()
        value = point.v @ cosines @ point.v
        if backend.known(gap <= _SOLVED * (1.0 + value)):
            break
        point = _stepped(backend, cosines, amounts, point, gap, ridge)
    return point.v * amounts / (point.v * amounts).sum()


def _start(backend: Backend, cosines: Any, amounts: Any, v: Any, t: Any) -> _Point:
    # Any positive multipliers with z - y = Cv - nu a are feasible. These make the products v z and t y about
    # equal, as on the central path, which allows long first steps.
    pull = cosines @ v
    nu = v @ pull  # a'v = 1: the multiplier if all were free
    slope = pull - nu * amounts
    level = (abs(slope) * v).sum() / len(v) + 1e-3
    return _Point(v, t, slope.clip(0.0) + level / v, (-slope).clip(0.0) + level / v, nu)


def _stepped(backend: Backend, cosines: Any, amounts: Any, at: _Point, gap: Any, ridge: float) -> _Point:
    xp, many = backend.xp, 2 * len(amounts)
    # Eliminating dz and dy from Newton's equations leaves the matrix C + diag(z / v + y / t) for dv. A ridge
    # keeps it definite whatever rounding did to the cosines. It only shortens steps: the residual `slope` is
    # computed without the ridge, and the next step corrects what is left.
    matrix = cosines + (at.z / at.v + at.y / at.t + ridge) * backend.unit(cosines)
    slope = cosines @ at.v - at.nu * amounts - at.z + at.y
    lack = 1.0 - amounts @ at.v

    def step(low: Any, high: Any) -> _Point:
        """Newton's step towards v z + v dz + z dv = v z + low, and likewise `high` for t y."""
        right = xp.stack((low / at.v - high / at.t - slope, amounts), 1)
        free, along = backend.solve(matrix, right).T
        nu = (lack - amounts @ free) / (amounts @ along)
        v = free + nu * along
        return _Point(v, -v, (low - at.z * v) / at.v, (high + at.y * v) / at.t, nu)

    # The predictor aims at products of 0. `left` is the share of the products that would remain after it. The
    # corrector aims at products of left^3 times their mean, so that a good predictor means little centring,
    # and takes the predictor's second-order terms dv dz and dt dy into account.
    first = step(-at.v * at.z, -at.t * at.y)
    share = _share(backend, at, first)
    there = _moved(at, first, share)
    left = ((there.v * there.z).sum() + (there.t * there.y).sum()) / gap
    centre = left**3 * gap / many
    second = step(
        centre - at.v * at.z - first.v * first.z,
        centre - at.t * at.y - first.t * first.y,
    )
    moved = _moved(at, second, _share(backend, at, second))
    # At the limit of rounding a step may not be finite; the previous point is kept then.
    good = xp.isfinite(moved.v.sum() + moved.z.sum() + moved.y.sum() + moved.nu)
    return _Point(*(backend.select(good, new, old) for new, old in zip(moved, at, strict=True)))


def _share(backend: Backend, at: _Point, step: _Point) -> Any:
    """The part of a step that keeps all of v, t, z and y positive."""
    xp = backend.xp
    values, changes = xp.concatenate(at[:4]), xp.concatenate(step[:4])
    shrinks = changes < 0.0
    room = xp.where(shrinks, values / xp.where(shrinks, -changes, 1.0), xp.inf)
    nearest = room.min() * _TO_BOUNDARY
    return backend.smaller(nearest, nearest * 0.0 + 1.0)


def _moved(at: _Point, step: _Point, share: Any) -> _Point:
    return _Point(*(value + share * change for value, change in zip(at, step, strict=True)))
