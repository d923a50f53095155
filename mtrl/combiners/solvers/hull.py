"""The shortest vector in the convex hull of the task gradients, where weights may have a cap.

Without a cap it is the end of a path (`shortest_in_hull`). With one, a path would have to decide which caps
bind between gradients that depend on each other; interior-point steps need no such decision, at the price of
some fifteen small systems instead of T pivots (`shortest_capped`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.combiners.solvers.backends import Backend, backend_of
from mtrl.combiners.solvers.path import follow, tolerance_of, units_of

_STEPS = 40  # 6 to 30 are needed; only dependent gradients in float32 took up to 40
_TO_BOUNDARY = 0.995  # share of the way to the nearest bound that a step may use
_SOLVED = 1e-16  # gap relative to the objective, at least to the shortest gradient's, at which steps end
_ROOM = 1e-9  # what the caps must exceed 1 by together, or all of them bind


def shortest_in_hull(gram: Tensor, *, eps: float) -> Tensor:
    """Return the minimiser w [T] in float64 of |g_w| over the simplex, for the Gramian [T, T].

    By duality g_w = x / |x|^2 for the shortest x with g_i.x >= 1 for all tasks. The path of `follow` with
    amounts 1 and offsets -1 / |g_i| asks for g_i.x >= 1 + nu |g_i| and ends at nu = 0: tasks with short
    gradients, which weigh most, enter first. Where gradients cancel it gets stuck before, and the weights
    that make them cancel have g_w = 0. Zero gradients weigh nothing (see `units_of`). `eps` is the rounding
    error of the Gramian's entries.
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
    predictor and corrector (SIAM J. Optimization 2, 1992) lower these products from a strictly feasible start
    and keep the equations, so that half the sum of the products bounds how far v'Cv / 2 is from the optimum.

    A cap of 1 / T or less gives 1 / T each. Zero gradients weigh what the caps of the others leave, and
    gradients fade out on the way there (see `units_of`). `eps` is the relative rounding error of the
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
    # Equal weights at first. Zero gradients do not occur in a'v = 1, and their v goes to 0.
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
    # All multipliers with z - y = Cv - nu a are feasible. About equal products v z and t y, as on the central
    # path, allow long first steps.
    pull = cosines @ v
    nu = v @ pull  # a'v = 1: the multiplier if all were free
    slope = pull - nu * amounts
    level = (abs(slope) * v).sum() / len(v) + 1e-3
    return _Point(v, t, slope.clip(0.0) + level / v, (-slope).clip(0.0) + level / v, nu)


def _stepped(backend: Backend, cosines: Any, amounts: Any, at: _Point, gap: Any, ridge: float) -> _Point:
    xp, many = backend.xp, 2 * len(amounts)
    # dz and dy are eliminated from Newton's equations, which leaves C + diag(z / v + y / t) for dv. The ridge
    # keeps this definite whatever rounding did to the cosines. It only shortens steps: `slope`, what is left
    # of the equations, is computed without it, and the next step corrects that.
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

    # Predictor: straight to products of 0. The further it gets, the less the corrector has to centre: that
    # aims at products of left^3 times the present mean, and adds the predictor's terms dv dz and dt dy.
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
    # At the limit of rounding a step may not be finite: the point before it stays.
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
