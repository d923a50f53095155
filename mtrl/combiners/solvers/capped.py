"""The shortest mix of the task gradients in which no task weighs more than a cap: interior-point steps.

For unit gradients with cosines C and a_i one over the lengths, the weights w_i = a_i v_i solve

    min v'Cv / 2    subject to  a'v = 1,  v >= 0,  t = cap / a - v >= 0.

With z and y the multipliers of v and t, the optimum has Cv - nu a = z - y and v z = t y = 0. Mehrotra's
predictor and corrector lower these products from a strictly feasible start and keep the equations, so that
half the sum of the products bounds at every step how far v'Cv / 2 is from the optimum. Nothing has to be
guessed about which caps bind, which a walk along corners (see solvers/path.py) would have to decide between
gradients that depend on each other; the price is some fifteen small systems in place of T pivots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from mtrl.combiners.solvers.roads import Road, road_of
from mtrl.combiners.solvers.units import tolerance_of, units_of

_STEPS = 40  # 9 to 32 are needed; only float32 gradients that depend on each other took all of them
_TO_BOUNDARY = 0.995  # share of the way to the nearest bound that a step may use
_SOLVED = 1e-16  # gap relative to the objective, at least to the shortest gradient's, at which steps end
_ROOM = 1e-9  # what the caps must exceed 1 by together, or all of them bind


def shortest_capped(gram: Tensor, cap: float, *, eps: float) -> Tensor:
    """Return the minimiser w [T] in float64 of |g_w| over the simplex with w_t <= cap, for a Gramian [T, T].

    A cap of 1 / T or less gives 1 / T each. Zero gradients weigh what the caps of the others leave, and
    gradients fade out on the way there (see `units_of`). `eps` is the relative rounding error of the
    Gramian's entries.
    """
    tasks = len(gram)
    road = road_of(gram)
    with road.quiet():
        xp = road.xp
        units = units_of(road, road.gramian(gram))
        there = xp.where(units.inverse > 0.0, 1.0, units.inverse * 0.0)
        number = there.sum()
        some = road.larger(number, number * 0.0 + 1.0)
        room = number * max(cap, 1.0 / tasks) - 1.0
        bound = road.larger(room, number * 0.0) + 1.0  # the cap of who is there, times their number
        mixed = there / some
        if not road.known(room <= _ROOM):
            solved = _solve(road, units.cosines, units.amounts, bound / some, there, tolerance_of(eps))
            mixed = road.select(room > _ROOM, solved, mixed)
        mixed = mixed * (1.0 + road.smaller(room, room * 0.0))
        rest = (1.0 - mixed.sum()) / road.larger(tasks - number, number * 0.0 + 1.0)
        return road.tensor(mixed + (1.0 - there) * road.larger(rest, rest * 0.0))


class _Point(NamedTuple):
    """Where the steps are; a step has the same parts."""

    v: Any
    t: Any
    z: Any
    y: Any
    nu: Any


def _solve(road: Road, cosines: Any, amounts: Any, cap: Any, there: Any, ridge: float) -> Any:
    xp = road.xp
    absent = there == 0.0
    own = xp.where(absent, 1.0, amounts)
    # All weigh the same at first. Who is absent has no part in a'v = 1 and goes to 0.
    v = there / (own * there.sum()) + absent * 0.5
    t = xp.where(absent, 0.5, cap / own - v)
    point = _start(road, cosines, amounts, v, t)
    for _ in range(_STEPS):
        gap = (point.v * point.z).sum() + (point.t * point.y).sum()
        value = point.v @ cosines @ point.v
        if road.known(gap <= _SOLVED * (1.0 + value)):
            break
        point = _stepped(road, cosines, amounts, point, gap, ridge)
    return point.v * amounts / (point.v * amounts).sum()


def _start(road: Road, cosines: Any, amounts: Any, v: Any, t: Any) -> _Point:
    # Any multipliers with z - y = Cv - nu a are feasible; equal products would be central.
    pull = cosines @ v
    nu = v @ pull  # a'v = 1: the multiplier if all were free
    slope = pull - nu * amounts
    level = (abs(slope) * v).sum() / len(v) + 1e-3
    return _Point(v, t, slope.clip(0.0) + level / v, (-slope).clip(0.0) + level / v, nu)


def _stepped(road: Road, cosines: Any, amounts: Any, at: _Point, gap: Any, ridge: float) -> _Point:
    xp, many = road.xp, 2 * len(amounts)
    # The ridge makes the matrix definite whatever rounding did to the cosines. It is not part of the
    # equations, whose rest `slope` the next step takes up, and so shortens steps without moving their end.
    matrix = cosines + (at.z / at.v + at.y / at.t + ridge) * road.unit(cosines)
    slope = cosines @ at.v - at.nu * amounts - at.z + at.y
    lack = 1.0 - amounts @ at.v

    def step(low: Any, high: Any) -> _Point:
        """Newton's step towards v z + v dz + z dv = v z + low, and likewise `high` for t y."""
        right = xp.stack((low / at.v - high / at.t - slope, amounts), 1)
        free, along = road.solve(matrix, right).T
        nu = (lack - amounts @ free) / (amounts @ along)
        v = free + nu * along
        return _Point(v, -v, (low - at.z * v) / at.v, (high + at.y * v) / at.t, nu)

    first = step(-at.v * at.z, -at.t * at.y)
    share = _share(road, at, first)
    there = _moved(at, first, share)
    left = ((there.v * there.z).sum() + (there.t * there.y).sum()) / gap
    centre = left**3 * gap / many
    second = step(
        centre - at.v * at.z - first.v * first.z,
        centre - at.t * at.y - first.t * first.y,
    )
    moved = _moved(at, second, _share(road, at, second))
    # Beyond rounding a step is not a number or goes nowhere: the last good one stays.
    good = xp.isfinite(moved.v.sum() + moved.z.sum() + moved.y.sum() + moved.nu)
    return _Point(*(road.select(good, new, old) for new, old in zip(moved, at, strict=True)))


def _share(road: Road, at: _Point, step: _Point) -> Any:
    """The part of a step that keeps all of v, t, z and y positive."""
    xp = road.xp
    values, changes = xp.concatenate(at[:4]), xp.concatenate(step[:4])
    shrinks = changes < 0.0
    room = xp.where(shrinks, values / xp.where(shrinks, -changes, 1.0), xp.inf)
    nearest = room.min() * _TO_BOUNDARY
    return road.smaller(nearest, nearest * 0.0 + 1.0)


def _moved(at: _Point, step: _Point, share: Any) -> _Point:
    return _Point(*(value + share * change for value, change in zip(at, step, strict=True)))
