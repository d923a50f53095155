"""The shortest vector in the convex hull of the task gradients, with or without a cap on the weights.

Without a cap it is the end of a path (`shortest_in_hull`). With a cap, a path would have to decide which caps
bind, and rounding errors can reverse that decision where gradients depend on each other. `shortest_capped`
uses interior-point steps instead, which need no such decision: 6 to 30 steps.
"""

import torch
from torch import Tensor

from mtrl.combiners.solvers import operations as op
from mtrl.combiners.solvers.backends import MOST_TASKS, portable, problem, solve
from mtrl.combiners.solvers.gramian import divisor
from mtrl.combiners.solvers.operations import Array
from mtrl.combiners.solvers.path import follow, larger, or_one, smaller, tolerance_of, units_of

_STEPS = 40  # 6 to 30 are needed; only dependent gradients in float32 took up to 40
_TO_BOUNDARY = 0.995  # share of the way to the nearest bound that a step may use
# Steps end at this gap, relative to the objective plus one. In the units of `capped`, 1 is the squared length
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
    return solve("hull", gram, numbers=(tolerance_of(eps),))


@portable("hull")
def hull(gram: Array, tasks: int, tolerance: float) -> Array:
    """Return the weights of `shortest_in_hull`."""
    cosines, inverse, amounts, there = units_of(gram)
    _, dual, _ = follow(cosines, there, -amounts, tasks, False, False, tolerance)
    weights = dual * inverse / or_one(op.total(dual * amounts))
    whole = op.total(weights)
    result: Array = op.where(whole > 0.0, weights / or_one(whole), 1.0 / op.real(tasks))
    return result


def hull_gap(gram: Tensor, weights: Tensor) -> Tensor:
    """Return the gap of the optimality conditions of `shortest_in_hull` at `weights` [T], a 0-dim tensor.

    Relative to the mean squared norm. Zero gradients, which leave the minimisation, do not count.
    """
    products, squares = gram @ weights, gram.diagonal()
    value = torch.dot(weights, products)
    gap = (value - torch.where(squares > 0.0, products, value)).amax()
    return gap / divisor(squares.mean())


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
    return solve("capped", gram, numbers=(cap, tolerance_of(eps)))


@problem("capped", lambda tasks: (tasks,), MOST_TASKS)
def _capped(gram: Array, cap: float, tolerance: float) -> Array:
    # Zero gradients beyond the tasks would take part in the steps' centring and make them shorter.
    return capped(gram, len(gram), cap, tolerance)


def capped(gram: Array, tasks: int, cap: float, tolerance: float) -> Array:
    """Return the weights of `shortest_capped`."""
    cosines, _, amounts, there = units_of(gram)
    count = op.real(tasks)
    number = op.total(there)
    some = or_one(number)
    room = number * op.select(cap * count > 1.0, cap, 1.0 / count) - 1.0
    mixed = there / some
    if not room <= _ROOM:
        present = there > 0.0
        own = op.where(present, amounts, 1.0)
        # Equal weights at first. Zero gradients have no part in a'v = 1, so that their v goes to 0.
        v = op.where(present, 1.0 / (own * some), 0.5)
        # The cap times the number of tasks with a gradient is room + 1.
        t = op.where(present, (op.at_least(room, 0.0) + 1.0) / some / own - v, 0.5)
        # Any positive multipliers with z - y = Cv - nu a are feasible. These make the products v z and t y
        # about equal, as on the central path, which allows long first steps.
        pull = op.times(cosines, v)
        nu = op.total(v * pull)  # a'v = 1: the multiplier if all were free
        slope = pull - nu * amounts
        level = op.total(abs(slope) * v) / op.total(v * 0.0 + 1.0) + 1e-3
        z = op.at_least(slope, 0.0) + level / v
        y = op.at_least(-slope, 0.0) + level / t
        steps = _STEPS
        while steps > 0:
            steps -= 1
            gap = op.total(v * z + t * y)
            if gap <= _SOLVED * (1.0 + op.total(v * op.times(cosines, v))):
                steps = 0
            else:
                v, t, z, y, nu = _stepped(cosines, amounts, v, t, z, y, nu, gap, tolerance)
        mixed = v * amounts / op.total(v * amounts)
    mixed = mixed * (1.0 + smaller(room * 0.0, room))
    # Zero gradients share what the caps of the others leave.
    rest = op.at_least(1.0 - op.total(mixed), 0.0) / or_one(count - number)
    result: Array = mixed + (1.0 - there) * rest
    return result


def _stepped(
    cosines: Array,
    amounts: Array,
    v: Array,
    t: Array,
    z: Array,
    y: Array,
    nu: float,
    gap: float,
    ridge: float,
) -> tuple[Array, Array, Array, Array, float]:
    """Return the next v, t, z, y and nu."""
    # Eliminating dz and dy from Newton's equations leaves the matrix C + diag(z / v + y / t) for dv. A ridge
    # keeps it definite whatever rounding did to the cosines. It only shortens steps: the residual `slope` is
    # computed without the ridge, and the next step corrects what is left.
    inverse = op.inverted(op.with_diagonal(cosines, op.diagonal(cosines) + ridge + z / v + y / t))
    slope = op.times(cosines, v) - nu * amounts - z + y
    lack = 1.0 - op.total(amounts * v)
    along = op.times(inverse, amounts)
    # The predictor aims at products of 0. `left` is the share of the products that would remain after it. The
    # corrector aims at products of left^3 times their mean, so that a good predictor means little centring,
    # and takes the predictor's second-order terms dv dz and dt dy into account.
    weight = op.total(amounts * along)
    centre = gap * 0.0
    share = centre
    dnu = centre
    dv = v * 0.0
    dz = dv
    dy = dv
    rounds = 2
    while rounds > 0:
        rounds -= 1
        # Newton's step towards v z + v dz + z dv = v z + low, and likewise `high` for t y; dt is -dv.
        low = centre - v * z - dv * dz
        high = centre - t * y + dv * dy
        free = op.times(inverse, low / v - high / t - slope)
        dnu = (lack - op.total(amounts * free)) / weight
        dv = free + dnu * along
        dz = (low - z * dv) / v
        dy = (high + y * dv) / t
        # The part of the step that keeps all of v, t, z and y positive.
        fastest = op.largest(op.at_least(op.at_least(-dv / v, dv / t), op.at_least(-dz / z, -dy / y)))
        share = _TO_BOUNDARY / larger(_TO_BOUNDARY, fastest)
        if rounds > 0:
            products = (v + share * dv) * (z + share * dz) + (t - share * dv) * (y + share * dy)
            left = op.total(products) / gap
            centre = left * left * left * gap / op.total(v * 0.0 + 2.0)
    # At the limit of rounding a step may not be finite; the previous point is kept then.
    far = op.total(v + z + y) + nu + share * (op.total(dv + dz + dy) + dnu)
    if abs(far) < op.INF:
        v = v + share * dv
        t = t - share * dv
        z = z + share * dz
        y = y + share * dy
        nu = nu + share * dnu
    return v, t, z, y, nu
