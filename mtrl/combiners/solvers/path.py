"""The shortest step that improves all tasks by given amounts, for ever larger amounts: a path with corners.

For unit gradients with cosines C, amounts n >= 0 and offsets q, the shortest x with

    g_i . x >= nu n_i - q_i    for all tasks i

is x = sum_i v_i g_i, where v >= 0 leaves slacks s = C v + q - nu n >= 0 with v_i s_i = 0. As nu grows, v is
piecewise linear: between two corners the set A of tasks with v_i > 0 stays, and C_AA v_A = nu n_A - q_A. At a
corner a task enters A, because its slack reaches 0, or leaves it, because its weight does. About T corners
lead from nu = -infinity, where A is empty, to any end, and each costs one pivot: nothing has to converge,
and there is no starting point to choose.

All min-max methods are an end of such a path: CAGrad, ConicGrad and IMGrad where |x| = 1 (see `ball`), MGDA
and SDMGrad at nu = 0 (see `hull`). Known as the parametric active-set method for quadratic programs; the
critical line of Markowitz and least-angle regression walk the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mtrl.combiners.solvers.roads import Road

_STEEP = 0.1  # share of the rounding error of amounts below which a rate counts as none
_ROUNDING = 1e-14  # of sums of as many terms as there are tasks, in double precision
_CANCELLED = 4.0  # most of that bound which the squared length of a mix that cancels may be
_AGAIN = (
    0.125  # of that bound for a task that has been replaced: between the two none would replace the other
)
_SHAKY = 1e-6  # the same at which pivots cost digits: from there on the tableau is made anew
_CLEARLY = 1e-2  # squared distance from the others' span at which a unit gradient is independent in any dtype


class PathEnd(NamedTuple):
    """Where a path ended."""

    weights: Any  # [T], v
    length: Any  # |x|
    stuck: Any  # whether no x gives a larger nu: then v is that of the largest, and |x| < 1
    ray: Any  # [T] >= 0; where stuck, weights of unit gradients that cancel, else zeros


def follow(
    road: Road,
    cosines: Any,
    amounts: Any,
    offsets: Any,
    *,
    to_length: bool,
    tolerance: float,
    first: int | None = None,
) -> PathEnd:
    """Follow the path to |x| = 1 (`to_length`) or to nu = 0.

    Args:
        road: NumPy or tensors; the arrays are its own, float64.
        cosines: C [T, T]; who is left out has zeros off the diagonal, a zero amount and a zero offset.
        amounts: n [T].
        offsets: q [T].
        to_length: which end.
        tolerance: rounding error of a cosine; a unit gradient counts as dependent on those in A if its
            squared
            distance from their span is below what this error makes of it.
        first: a task of zero amount and negative offset, which is in A from the beginning.
    """
    xp, tasks = road.xp, len(amounts)
    tableau = _tableau(xp, cosines, amounts, offsets)
    active, replaced = amounts < 0.0, amounts < 0.0  # nobody
    reached = stuck = shaky = offsets[0] != offsets[0]  # none of them
    start, ray = amounts[0] * 0.0, amounts * 0.0
    amount = start - xp.inf
    # Rates are differences of amounts: below their rounding error a slack or a weight does not fall.
    slowest, most = amounts * (tolerance * _STEEP), start
    if first is not None:
        tableau, active = _pivoted(road, tableau, active, road.index(first, amounts))
    for _ in range(road.steps(tasks)):
        values, rates = tableau[:tasks, tasks], tableau[:tasks, tasks + 1]
        # Of a copy of somebody in A the rate is what rounding leaves of the rates in A.
        copied = xp.where(active, abs(rates), 0.0).sum() * _ROUNDING
        corners = xp.where(rates > slowest + (most + copied), values / rates, xp.inf)
        nearest = road.lowest(corners)
        corner = road.larger(road.at(corners, nearest), amount)
        end = _length_one(road, tableau) if to_length else start
        moving = ~(reached | stuck)
        reached = reached | (moving & (end <= corner))
        amount = road.select(moving, road.smaller(end, corner), amount)
        moving = moving & ~reached
        if road.known(reached):
            break
        # A dependent gradient cannot enter: while its own weight grows, others shrink at once, and nu
        # stays. The first of them to vanish leaves in the same step. If none of them shrinks, gradients
        # cancel.
        column = road.column(tableau, nearest)
        own = road.at(column, nearest)
        most = road.larger(most, road.at(slowest, nearest))
        if not road.known(own > _CLEARLY):
            mix = xp.where(active, -column[:tasks], 0.0)
            bound = tolerance * (1.0 + mix @ mix)
            bound = road.select(road.at(replaced, nearest), bound * _AGAIN, bound)
            dependent = moving & ~road.at(active, nearest) & (own < bound)
            # What somebody's leaving adds to the distance: rounding alone must not look like a share.
            share = mix * mix > bound * tableau.diagonal()[:tasks]
            alone = road.put((-mix).clip(0.0), nearest, start + 1.0)
            # Without these shares the others cancel, or they did count.
            share = share | (alone @ (cosines @ alone) > _CANCELLED * bound)
            shrinks = (mix > 0.0) & share
            room = (values - amount * rates) / xp.where(shrinks, mix, 1.0)
            room = xp.where(shrinks, room, xp.inf)
            leaving = road.lowest(room)
            cancel = dependent & (road.at(room, leaving) == xp.inf)
            stuck = stuck | cancel
            ray = road.select(cancel, alone, ray)
            if road.known(stuck):
                break
            moving = moving & ~cancel
            tableau, active = _moved(road, dependent & moving, tableau, active, leaving)
            replaced = road.put(replaced, leaving, road.at(replaced, leaving) | (dependent & moving))
            shaky = shaky | (moving & (own < _SHAKY))
        tableau, active = _moved(road, moving, tableau, active, nearest)
        if road.known(shaky):
            tableau = _made(road, cosines, amounts, offsets, active)
    amount = road.select(abs(amount) < xp.inf, amount, start)  # infinite where nobody is in A
    weights, square = _refined(
        road, cosines, amounts, offsets, active, amount, reached if to_length else None
    )
    if not road.known(xp.isfinite(weights).all()):  # by its rounding errors the last set may be dependent
        on_the_way = xp.where(active, tableau[:tasks, tasks] - amount * tableau[:tasks, tasks + 1], 0.0)
        weights = xp.where(xp.isfinite(weights), weights, on_the_way.clip(0.0))
    # What rounding leaves of the equations; a step that ended early is shorter than 1.
    length = road.select(square > 1.0 - 1e-6, square, square * 0.0 + 1.0) ** 0.5
    return PathEnd(weights / length if to_length else weights, square.clip(0.0) ** 0.5 / length, stuck, ray)


def _refined(
    road: Road, cosines: Any, amounts: Any, offsets: Any, active: Any, amount: Any, reached: Any | None
) -> tuple[Any, Any]:
    """Return v and |x|^2 for the last set of the path, free of the rounding errors of the way there.

    Where |x| = 1 was `reached` its nu is found anew, too. Who weighs less than nothing by these errors
    leaves: the rest makes up for it, which a weight that is only cut off would not let it.
    """
    xp = road.xp
    beside = xp.stack((offsets, amounts), 1)
    for _ in range(road.repairs(len(amounts))):
        among = active[:, None] & active[None, :]
        matrix = road.with_diagonal(xp.where(among, cosines, 0.0), xp.where(active, cosines.diagonal(), 1.0))
        right = xp.where(active[:, None], beside, 0.0)
        both = road.solve(matrix, right)
        if reached is not None:
            squares = right.T @ both
            nu = _root(road, squares[0, 0], squares[0, 1], squares[1, 1])
            amount = road.select(reached & (nu < xp.inf), nu, amount)  # infinite where nobody is in A
        weights = amount * both[:, 1] - both[:, 0]
        lost = weights < 0.0
        if road.known(~lost.any()):
            break
        active = active & ~lost
    # |x|^2 = v'Cv by the equations that v solves: large weights, of gradients that nearly cancel, would leave
    # no digits of the double product.
    square = (weights.clip(0.0) * xp.where(active, amount * amounts - offsets, 0.0)).sum()
    return weights.clip(0.0), square


def _made(road: Road, cosines: Any, amounts: Any, offsets: Any, active: Any) -> Any:
    """The tableau with A on the other side, from scratch."""
    xp = road.xp
    whole = _tableau(xp, cosines, amounts, offsets)
    inside = xp.concatenate((active, active[:1] & False, active[:1] & False), 0)
    unit = road.unit(whole)
    matrix = xp.where(inside[:, None] & inside[None, :], whole, xp.where(inside[:, None], 0.0, unit))
    both = road.solve(
        matrix,
        xp.concatenate((xp.where(inside[:, None], whole, 0.0), xp.where(inside[:, None], unit, 0.0)), 1),
    )
    shares, inverse = both[:, : len(whole)], both[:, len(whole) :]
    outside = whole - whole @ shares
    across = xp.where(inside[None, :], inverse, -shares)
    return xp.where(inside[:, None], across, xp.where(inside[None, :], shares.T, outside))


def _tableau(xp: Any, cosines: Any, amounts: Any, offsets: Any) -> Any:
    # y = q - nu n + C x with y the slacks and x the weights, then bordered, so that its last two rows
    # become the products of q and n over C_AA: [T + 2, T + 2].
    beside = xp.stack((offsets, amounts), 1)
    corner = (beside.T @ beside) * 0.0
    return xp.concatenate((xp.concatenate((cosines, beside), 1), xp.concatenate((beside.T, corner), 1)), 0)


def _length_one(road: Road, tableau: Any) -> Any:
    """The nu at which |x| is 1, for the present A."""
    return _root(road, -tableau[-2, -2], -tableau[-2, -1], -tableau[-1, -1])


def _root(road: Road, qq: Any, qn: Any, nn: Any) -> Any:
    """The larger nu at which |x|^2 = nn nu^2 - 2 qn nu + qq is 1; infinite where nu changes nothing."""
    some, none = nn > 0.0, nn * 0.0
    root = road.larger(qn * qn - nn * (qq - 1.0), none) ** 0.5
    return road.select(some, (qn + root) / road.select(some, nn, none + 1.0), none + road.xp.inf)


def _moved(road: Road, flag: Any, tableau: Any, active: Any, index: Any) -> tuple[Any, Any]:
    """Pivot on a task where `flag` says so."""
    if road.known(flag):
        return _pivoted(road, tableau, active, index)
    if road.known(~flag):
        return tableau, active
    new_tableau, new_active = _pivoted(road, tableau, active, index)
    return road.select(flag, new_tableau, tableau), road.select(flag, new_active, active)


def _pivoted(road: Road, tableau: Any, active: Any, index: Any) -> tuple[Any, Any]:
    """Exchange slack and weight of one task: it enters A or leaves it."""
    column = road.column(tableau, index)
    pivot = road.at(column, index)
    row = road.put(road.at(tableau, index) / -pivot, index, 1.0 / pivot)
    tableau = road.blank_column(tableau, index) + column[:, None] * row[None, :]
    return road.put(tableau, index, row), road.put(active, index, ~road.at(active, index))
