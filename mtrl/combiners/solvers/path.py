"""The shortest step that improves all tasks by given amounts, for ever larger amounts: a path with corners.

For unit gradients with cosines C, amounts n >= 0 and offsets q, the shortest x with

    g_i . x >= nu n_i - q_i    for all tasks i

is x = sum_i v_i g_i, where v >= 0 leaves slacks s = C v + q - nu n >= 0 with v_i s_i = 0. As nu grows, v is
piecewise linear: between two corners the set A of tasks with v_i > 0 stays, and C_AA v_A = nu n_A - q_A. At a
corner a task enters A, because its slack reaches 0, or leaves it, because its weight does. The path starts at
nu = -infinity, where A is empty, and reaches any end after about T corners, each of which costs one pivot. So
there is no starting point to choose and no tolerance of convergence.

The solutions of all min-max methods are ends of such paths: |x| = 1 for CAGrad, ConicGrad and IMGrad (see
`worst_case`), nu = 0 for MGDA and SDMGrad (see `hull`). This is the parametric active-set method for
quadratic programs; Markowitz's critical line and least-angle regression walk the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mtrl.combiners.solvers.backends import Backend

# Square of the length, relative to the longest gradient, at which a gradient fades out. Far below what any
# dtype resolves next to the longest one: 1e12 times as short it still counts to 8 digits.
_FADING = 1e-32

_STEEP = 0.1  # share of the rounding error of amounts below which a rate counts as zero
_ROUNDING = 1e-14  # of a sum over the tasks in double precision
# A unit gradient depends on those in A if its squared distance from their span is below a bound: what the
# rounding errors of the cosines can make of a distance of zero.
_CANCELLED = 4.0  # a mix of gradients cancels if its squared length is below this many bounds
_AGAIN = 0.125  # of the bound, for a task that was replaced before: else two could take turns for ever
_SHAKY = 1e-6  # squared distance below which a pivot costs digits: the tableau is then computed anew
_CLEARLY = 1e-2  # squared distance at which a unit gradient is independent in any dtype


class Units(NamedTuple):
    """Unit gradients and how the gradients themselves follow from them."""

    cosines: Any  # [T, T], with ones on the diagonal; fading gradients have more there
    inverse: Any  # [T], one over the length; 0 for a zero gradient
    amounts: Any  # [T], one over the length in units of the largest of these; 0 for a zero gradient


def units_of(backend: Backend, gram: Any) -> Units:
    """Return the unit gradients of a Gramian [T, T].

    A zero gradient is left out: no direction changes its task, so it does not enter maximisations of the
    worst improvement. To keep methods continuous in the gradients, one of relative length rho counts with a
    share rho^2 / (rho^2 + 1e-32): the improvement asked for its task is multiplied by this share, the squared
    length of its unit gradient is divided by it.
    """
    xp = backend.xp
    squares = gram.diagonal().clip(0.0)
    there = squares > 0.0
    inverse = xp.where(there, squares**-0.5, 0.0)
    fading = xp.where(there, squares.max() / squares * _FADING, 0.0) + 1.0
    # Ones on the diagonal, also for gradients that are left out.
    cosines = backend.with_diagonal(gram * inverse[:, None] * inverse[None, :], fading)
    shares = inverse / fading
    most = shares.max()
    return Units(cosines, inverse, shares / xp.where(most > 0.0, most, 1.0))


def tolerance_of(eps: float) -> float:
    """Error of a cosine (see `path.follow`) where the Gramian's entries have the relative error `eps`."""
    return max(8.0 * eps, 1e-11)


class PathEnd(NamedTuple):
    """Where a path ended."""

    weights: Any  # [T], v
    length: Any  # |x|
    stuck: Any  # whether no x reaches a larger nu: then v is that of the largest, and |x| < 1
    ray: Any  # [T] >= 0; where stuck, weights of unit gradients that cancel, else zeros


def follow(
    backend: Backend,
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
        backend: NumPy or torch; the arrays are its own, float64.
        cosines: C [T, T]; a task that is left out has zeros off the diagonal, and amount and offset zero.
        amounts: n [T].
        offsets: q [T].
        to_length: which end.
        tolerance: rounding error of a cosine, from which follows when gradients depend on each other.
        first: a task of zero amount and negative offset, which is in A from the beginning.
    """
    xp, tasks = backend.xp, len(amounts)
    tableau = _tableau(xp, cosines, amounts, offsets)
    active, replaced = amounts < 0.0, amounts < 0.0  # no task
    reached = stuck = shaky = offsets[0] != offsets[0]  # false
    start, ray = amounts[0] * 0.0, amounts * 0.0
    amount = start - xp.inf
    # Rates are differences of amounts: one below their rounding error counts as zero.
    slowest, most = amounts * (tolerance * _STEEP), start  # most: the largest of them met on the way
    if first is not None:
        tableau, active = _pivoted(backend, tableau, active, backend.index(first, amounts))
    for _ in range(backend.steps(tasks)):
        # For the present A, values - nu rates are the weights of the tasks in A and the slacks of the others.
        # Each that falls reaches 0 at nu = values / rates, and the first of these is the next corner.
        values, rates = tableau[:tasks, tasks], tableau[:tasks, tasks + 1]
        # The slack of a copy of a task in A should have the rate 0; it has the rounding error of A's rates.
        copied = xp.where(active, abs(rates), 0.0).sum() * _ROUNDING
        corners = xp.where(rates > slowest + (most + copied), values / rates, xp.inf)
        nearest = backend.lowest(corners)
        corner = backend.larger(backend.at(corners, nearest), amount)
        end = _length_one(backend, tableau) if to_length else start
        moving = ~(reached | stuck)
        reached = reached | (moving & (end <= corner))
        amount = backend.select(moving, backend.smaller(end, corner), amount)
        moving = moving & ~reached
        if backend.known(reached):
            break
        # A gradient that is a mix of those in A cannot enter by itself: C_AA would become singular. At the
        # same nu and x its weight grows while the weights of its mix shrink, until the first of these is 0
        # and leaves A in its place. If none of them shrinks, gradients cancel and nu cannot grow further.
        column = backend.column(tableau, nearest)
        own = backend.at(column, nearest)  # its squared distance from the span of A
        most = backend.larger(most, backend.at(slowest, nearest))
        if not backend.known(own > _CLEARLY):
            mix = xp.where(active, -column[:tasks], 0.0)  # the one in that span that is nearest to it
            bound = tolerance * (1.0 + mix @ mix)
            bound = backend.select(backend.at(replaced, nearest), bound * _AGAIN, bound)
            dependent = moving & ~backend.at(active, nearest) & (own < bound)
            # If task i leaves, the squared distance grows by mix_i^2 / (C_AA^-1)_ii: shares for which that is
            # below the bound are rounding errors.
            share = mix * mix > bound * tableau.diagonal()[:tasks]
            alone = backend.put((-mix).clip(0.0), nearest, start + 1.0)
            # They count after all where the mix does not cancel without them.
            share = share | (alone @ (cosines @ alone) > _CANCELLED * bound)
            shrinks = (mix > 0.0) & share
            room = (values - amount * rates) / xp.where(shrinks, mix, 1.0)
            room = xp.where(shrinks, room, xp.inf)
            leaving = backend.lowest(room)
            cancel = dependent & (backend.at(room, leaving) == xp.inf)
            stuck = stuck | cancel
            ray = backend.select(cancel, alone, ray)
            if backend.known(stuck):
                break
            moving = moving & ~cancel
            tableau, active = _moved(backend, dependent & moving, tableau, active, leaving)
            replaced = backend.put(replaced, leaving, backend.at(replaced, leaving) | (dependent & moving))
            shaky = shaky | (moving & (own < _SHAKY))
        tableau, active = _moved(backend, moving, tableau, active, nearest)
        if backend.known(shaky):
            tableau = _made(backend, cosines, amounts, offsets, active)
    amount = backend.select(abs(amount) < xp.inf, amount, start)  # infinite while A is empty
    weights, square = _refined(
        backend, cosines, amounts, offsets, active, amount, reached if to_length else None
    )
    # Rounding can make the last set dependent, and its equations singular: the tableau's weights remain.
    if not backend.known(xp.isfinite(weights).all()):
        on_the_way = xp.where(active, tableau[:tasks, tasks] - amount * tableau[:tasks, tasks + 1], 0.0)
        weights = xp.where(xp.isfinite(weights), weights, on_the_way.clip(0.0))
    # A length of 1 but for rounding is made 1; where the path got stuck the step is shorter.
    length = backend.select(square > 1.0 - 1e-6, square, square * 0.0 + 1.0) ** 0.5
    return PathEnd(weights / length if to_length else weights, square.clip(0.0) ** 0.5 / length, stuck, ray)


def _refined(
    backend: Backend, cosines: Any, amounts: Any, offsets: Any, active: Any, amount: Any, reached: Any | None
) -> tuple[Any, Any]:
    """Return v and |x|^2 for the last set A of the path, free of the rounding errors of its pivots.

    Solves C_AA v_A = nu n_A - q_A once with the given cosines; where |x| = 1 was `reached`, nu is computed
    again, too. Tasks with a negative weight leave A and the equations are solved without them: setting their
    weight to zero alone would violate the equations of the others.
    """
    xp = backend.xp
    beside = xp.stack((offsets, amounts), 1)
    for _ in range(backend.repairs(len(amounts))):
        among = active[:, None] & active[None, :]
        matrix = backend.with_diagonal(
            xp.where(among, cosines, 0.0), xp.where(active, cosines.diagonal(), 1.0)
        )
        right = xp.where(active[:, None], beside, 0.0)
        both = backend.solve(matrix, right)
        if reached is not None:
            squares = right.T @ both
            nu = _root(backend, squares[0, 0], squares[0, 1], squares[1, 1])
            amount = backend.select(reached & (nu < xp.inf), nu, amount)  # infinite if A is empty
        weights = amount * both[:, 1] - both[:, 0]
        lost = weights < 0.0
        if backend.known(~lost.any()):
            break
        active = active & ~lost
    # |x|^2 = v'Cv = v'(nu n - q) by the equations of v. The double product itself would lose all digits where
    # gradients nearly cancel and weights are large.
    square = (weights.clip(0.0) * xp.where(active, amount * amounts - offsets, 0.0)).sum()
    return weights.clip(0.0), square


def _made(backend: Backend, cosines: Any, amounts: Any, offsets: Any, active: Any) -> Any:
    """The tableau after pivots on all of A, computed at once.

    With K the first tableau and B the rest: [K_AA^-1, -K_AA^-1 K_AB; K_BA K_AA^-1, K_BB - K_BA K_AA^-1 K_AB].
    """
    xp = backend.xp
    whole = _tableau(xp, cosines, amounts, offsets)
    inside = xp.concatenate((active, active[:1] & False, active[:1] & False), 0)
    unit = backend.unit(whole)
    matrix = xp.where(inside[:, None] & inside[None, :], whole, xp.where(inside[:, None], 0.0, unit))
    both = backend.solve(
        matrix,
        xp.concatenate((xp.where(inside[:, None], whole, 0.0), xp.where(inside[:, None], unit, 0.0)), 1),
    )
    shares, inverse = both[:, : len(whole)], both[:, len(whole) :]
    outside = whole - whole @ shares
    across = xp.where(inside[None, :], inverse, -shares)
    return xp.where(inside[:, None], across, xp.where(inside[None, :], shares.T, outside))


def _tableau(xp: Any, cosines: Any, amounts: Any, offsets: Any) -> Any:
    # The rows of s = q - nu n + C v, bordered by q and n. Pivots on A turn the corner [2, 2] into minus the
    # products q'C_AA^-1 q, q'C_AA^-1 n and n'C_AA^-1 n, which |x|^2 is made of.
    beside = xp.stack((offsets, amounts), 1)
    corner = (beside.T @ beside) * 0.0
    return xp.concatenate((xp.concatenate((cosines, beside), 1), xp.concatenate((beside.T, corner), 1)), 0)


def _length_one(backend: Backend, tableau: Any) -> Any:
    """The nu at which |x| is 1, for the present A."""
    return _root(backend, -tableau[-2, -2], -tableau[-2, -1], -tableau[-1, -1])


def _root(backend: Backend, qq: Any, qn: Any, nn: Any) -> Any:
    """The larger nu at which |x|^2 = nn nu^2 - 2 qn nu + qq is 1; infinite where nu changes nothing.

    |x|^2 = v'Cv with v_A = C_AA^-1 (nu n_A - q_A); along the path it grows with nu.
    """
    some, none = nn > 0.0, nn * 0.0
    root = backend.larger(qn * qn - nn * (qq - 1.0), none) ** 0.5
    return backend.select(some, (qn + root) / backend.select(some, nn, none + 1.0), none + backend.xp.inf)


def _moved(backend: Backend, flag: Any, tableau: Any, active: Any, index: Any) -> tuple[Any, Any]:
    """Pivot on a task where `flag` says so."""
    if backend.known(flag):
        return _pivoted(backend, tableau, active, index)
    if backend.known(~flag):
        return tableau, active
    new_tableau, new_active = _pivoted(backend, tableau, active, index)
    return backend.select(flag, new_tableau, tableau), backend.select(flag, new_active, active)


def _pivoted(backend: Backend, tableau: Any, active: Any, index: Any) -> tuple[Any, Any]:
    """Exchange slack and weight of one task: it enters A or leaves it.

    Its row s_i = p v_i + ... is solved for v_i, and that is inserted into all other rows.
    """
    column = backend.column(tableau, index)
    pivot = backend.at(column, index)
    row = backend.put(backend.at(tableau, index) / -pivot, index, 1.0 / pivot)
    tableau = backend.blank_column(tableau, index) + column[:, None] * row[None, :]
    return backend.put(tableau, index, row), backend.put(active, index, ~backend.at(active, index))
