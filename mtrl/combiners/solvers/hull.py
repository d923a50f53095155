"""The shortest vector in the convex hull of the task gradients, with or without a cap on the weights.

Without a cap it is the end of a path (`shortest_in_hull`). With a cap, a path would have to decide which caps
bind, which rounding errors can turn round where gradients depend on each other. `shortest_capped` uses
interior-point steps instead, which need no such decision and solve about fifteen small systems.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners.solvers.backends import Array, problem, solve
from mtrl.combiners.solvers.path import follow, solved, tolerance_of, units_of

_STEPS = 40  # 6 to 30 are needed; only dependent gradients in float32 took up to 40
_TO_BOUNDARY = 0.995  # share of the way to the nearest bound that a step may use
# Steps end at this gap, relative to the objective plus one. In the units of `_steps`, 1 is the squared length
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
    return solve("hull", gram, numbers=(eps,))


@problem("hull", lambda tasks: (tasks,))
def _hull(gram: Array, eps: float) -> Array:
    units = units_of(gram)
    there = np.where(units.inverse > 0.0, 1.0, 0.0)
    end = follow(units.cosines, there, -units.amounts, to_length=False, tolerance=tolerance_of(eps))
    total = (end.dual * units.amounts).sum()
    if not total > 0.0:
        return np.full(len(gram), 1.0 / len(gram))
    weights: Array = end.dual * units.inverse / total
    whole: Array = weights / weights.sum()
    return whole


def project(point: Tensor) -> Tensor:
    """Return the point of the simplex nearest to `point` [T] (Euclidean): max(point - s, 0) of sum 1.

    s is the largest of (sum of the k largest entries - 1) / k over all k.
    """
    # The constraint sum = 1 is lost beside numbers above 1e16; only differences of the entries count.
    point = point - point.amax()
    # Sums over the entries that are no smaller than entry i, without a sort and a GPU's cumsum, whose order
    # varies. Equal entries give the sum of all of them, beside which those of some are never the largest.
    larger = point >= point.unsqueeze(1)
    shift = (torch.where(larger, point, 0.0).sum(1) - 1.0) / larger.sum(1)
    return (point - shift.amax()).clamp(min=0.0)


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
    return solve("capped", gram, numbers=(cap, eps))


@problem("capped", lambda tasks: (tasks,))
def _capped(gram: Array, cap: float, eps: float) -> Array:
    tasks = len(gram)
    units = units_of(gram)
    there = np.where(units.inverse > 0.0, 1.0, 0.0)
    number = there.sum()
    some = max(number, 1.0)
    room = number * max(cap, 1.0 / tasks) - 1.0
    mixed = there / some
    if not room <= _ROOM:
        # The cap times the number of tasks with a gradient is room + 1.
        own_cap = (max(room, 0.0) + 1.0) / some
        mixed = _steps(units.cosines, units.amounts, own_cap, there, tolerance_of(eps))
    mixed = mixed * (1.0 + min(room, 0.0))
    rest = (1.0 - mixed.sum()) / max(tasks - number, 1.0)
    weights: Array = mixed + (1.0 - there) * max(rest, 0.0)
    return weights


class _Point(NamedTuple):
    """An iterate of the steps, or a step itself."""

    v: Array
    t: Array
    z: Array
    y: Array
    nu: float


def _steps(cosines: Array, amounts: Array, cap: float, there: Array, ridge: float) -> Array:
    absent = there == 0.0
    own = np.where(absent, 1.0, amounts)
    # Equal weights at first. Zero gradients have no part in a'v = 1, so that their v goes to 0.
    v = there / (own * there.sum()) + absent * 0.5
    t = np.where(absent, 0.5, cap / own - v)
    point = _start(cosines, amounts, v, t)
    for _ in range(_STEPS):
        gap = (point.v * point.z).sum() + (point.t * point.y).sum()
        value = point.v @ cosines @ point.v
        if gap <= _SOLVED * (1.0 + value):
            break
        point = _stepped(cosines, amounts, point, gap, ridge)
    weights: Array = point.v * amounts / (point.v * amounts).sum()
    return weights


def _start(cosines: Array, amounts: Array, v: Array, t: Array) -> _Point:
    # Any positive multipliers with z - y = Cv - nu a are feasible. These make the products v z and t y about
    # equal, as on the central path, which allows long first steps.
    pull = cosines @ v
    nu = v @ pull  # a'v = 1: the multiplier if all were free
    slope = pull - nu * amounts
    level = (abs(slope) * v).sum() / len(v) + 1e-3
    return _Point(v, t, slope.clip(0.0) + level / v, (-slope).clip(0.0) + level / v, nu)


def _stepped(cosines: Array, amounts: Array, at: _Point, gap: float, ridge: float) -> _Point:
    many = 2 * len(amounts)
    # Eliminating dz and dy from Newton's equations leaves the matrix C + diag(z / v + y / t) for dv. A ridge
    # keeps it definite whatever rounding did to the cosines. It only shortens steps: the residual `slope` is
    # computed without the ridge, and the next step corrects what is left.
    matrix = cosines + (at.z / at.v + at.y / at.t + ridge) * np.eye(len(cosines))
    slope = cosines @ at.v - at.nu * amounts - at.z + at.y
    lack = 1.0 - amounts @ at.v

    def step(low: Array, high: Array) -> _Point:
        """Newton's step towards v z + v dz + z dv = v z + low, and likewise `high` for t y."""
        right = np.stack((low / at.v - high / at.t - slope, amounts), 1)
        free, along = solved(matrix, right).T
        nu = (lack - amounts @ free) / (amounts @ along)
        v = free + nu * along
        return _Point(v, -v, (low - at.z * v) / at.v, (high + at.y * v) / at.t, nu)

    # The predictor aims at products of 0. `left` is the share of the products that would remain after it. The
    # corrector aims at products of left^3 times their mean, so that a good predictor means little centring,
    # and takes the predictor's second-order terms dv dz and dt dy into account.
    first = step(-at.v * at.z, -at.t * at.y)
    share = _share(at, first)
    there = _moved(at, first, share)
    left = ((there.v * there.z).sum() + (there.t * there.y).sum()) / gap
    centre = left**3 * gap / many
    second = step(
        centre - at.v * at.z - first.v * first.z,
        centre - at.t * at.y - first.t * first.y,
    )
    moved = _moved(at, second, _share(at, second))
    # At the limit of rounding a step may not be finite; the previous point is kept then.
    return moved if np.isfinite(moved.v.sum() + moved.z.sum() + moved.y.sum() + moved.nu) else at


def _share(at: _Point, step: _Point) -> float:
    """The part of a step that keeps all of v, t, z and y positive."""
    values, changes = np.concatenate(at[:4]), np.concatenate(step[:4])
    shrinks = changes < 0.0
    room = np.where(shrinks, values / np.where(shrinks, -changes, 1.0), np.inf)
    return min(float(room.min()) * _TO_BOUNDARY, 1.0)


def _moved(at: _Point, step: _Point, share: float) -> _Point:
    pairs: Any = zip(at, step, strict=True)
    return _Point(*(value + share * change for value, change in pairs))
