"""The shortest step that improves all tasks by given amounts, for ever larger amounts: a path with corners.

For unit gradients with cosines C, amounts n >= 0 and offsets q, the shortest x with

    g_i . x >= nu n_i - q_i    for all tasks i

is x = sum_i v_i g_i, where v >= 0 leaves slacks s = C v + q - nu n >= 0 with v_i s_i = 0. As nu grows, v is
piecewise linear: between two corners the set A of tasks with v_i > 0 stays, and C_AA v_A = nu n_A - q_A. At a
corner a task enters A, because its slack reaches 0, or leaves it, because its weight does. The path starts at
nu = -infinity, where A is empty, and reaches any end after about T corners, each of which costs one pivot. It
needs no starting point and no tolerance of convergence.

The solutions of all min-max methods are ends of such paths: |x| = 1 for CAGrad, ConicGrad and IMGrad (see
`worst_case`), nu = 0 for MGDA and SDMGrad (see `hull`). This is the parametric active-set method for
quadratic programs; Markowitz's critical line and least-angle regression walk the same way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mtrl.combiners.solvers.backends import Backend

# Squared length, relative to the longest gradient, at which a gradient counts half. A gradient that is 1e12
# times shorter than the longest still counts to 8 digits.
_FADING = 1e-32

_STEEP = 0.1  # a rate below this share of the rounding error of the amounts counts as zero
_ROUNDING = 1e-14  # relative rounding error of a sum over the tasks in double precision
# A unit gradient depends on those in A if its squared distance from their span is below a bound, the largest
# squared distance that rounding errors of the cosines can make of zero.
_CANCELLED = 4.0  # a mix of gradients cancels if its squared length is below this many bounds
_AGAIN = 0.125  # share of the bound for a task that was replaced before: two tasks could take turns for ever
_SHAKY = 1e-6  # a pivot on a squared distance below this costs digits: the tableau is then computed anew
_CLEARLY = 1e-2  # a unit gradient at this squared distance is independent in any dtype


class Units(NamedTuple):
    """Unit gradients and how the gradients themselves follow from them."""

    cosines: Any  # [T, T], with ones on the diagonal; fading gradients have more there
    inverse: Any  # [T], one over the length; 0 for a zero gradient
    amounts: Any  # [T], one over the length in units of the largest of these; 0 for a zero gradient


def units_of(backend: Backend, gram: Any) -> Units:
    """Return the unit gradients of a Gramian [T, T].

    No direction changes the task of a zero gradient, so maximisations of the worst improvement leave it out.
    To keep methods continuous in the gradients, a gradient of length rho relative to the longest gets the
    share rho^2 / (rho^2 + 1e-32). The improvement required of its task is multiplied by this share, and the
    squared length of its unit gradient is divided by it.
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
    stuck: Any  # whether no x reaches a larger nu; v then belongs to the largest nu, and |x| < 1
    ray: Any  # [T] >= 0; where stuck, weights of unit gradients that cancel, otherwise zeros


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
        to_length: Whether the path ends at |x| = 1 instead of nu = 0.
        tolerance: Rounding error of a cosine, which decides when gradients count as dependent.
        first: A task of zero amount and negative offset, which is in A from the beginning.
    """
    xp, tasks = backend.xp, len(amounts)
    tableau = _tableau(xp, cosines, amounts, offsets)
    active, replaced = amounts < 0.0, amounts < 0.0  # no task
    reached = stuck = shaky = offsets[0] != offsets[0]  # false
    start, ray = amounts[0] * 0.0, amounts * 0.0
    amount = start - xp.inf
    # A rate is a difference of amounts and counts as zero below their rounding error. `most` is the largest
    # such error among the tasks that were at a corner so far.
    slowest, most = amounts * (tolerance * _STEEP), start
    if first is not None:
        tableau, active = _pivoted(backend, tableau, active, backend.index(first, amounts))
    for _ in range(backend.steps(tasks)):
        # For the present A, values - nu rates are the weights of the tasks in A and the slacks of the others.
        # Each that falls reaches 0 at nu = values / rates, and the first of these is the next corner.
        values, rates = tableau[:tasks, tasks], tableau[:tasks, tasks + 1]
        # The slack of an exact copy of a task in A has the rate 0 up to the rounding error of A's rates.
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
        # A gradient that is a mix of those in A cannot enter by itself, because C_AA would become singular.
        # Its weight grows at the same nu and x while the weights of the mix shrink. The first of these to
        # reach 0 leaves A, and the gradient takes its place. If none shrinks, gradients cancel, and nu cannot
        # grow further.
        column = backend.column(tableau, nearest)
        own = backend.at(column, nearest)  # squared distance of this gradient from the span of A
        most = backend.larger(most, backend.at(slowest, nearest))
        if not backend.known(own > _CLEARLY):
            mix = xp.where(active, -column[:tasks], 0.0)  # weights of the nearest vector in that span
            bound = tolerance * (1.0 + mix @ mix)
            bound = backend.select(backend.at(replaced, nearest), bound * _AGAIN, bound)
            dependent = moving & ~backend.at(active, nearest) & (own < bound)
            # If task i leaves, the squared distance grows by mix_i^2 / (C_AA^-1)_ii. Where this is below the
            # bound, mix_i is a rounding error, and task i is no candidate for leaving,
            share = mix * mix > bound * tableau.diagonal()[:tasks]
            alone = backend.put((-mix).clip(0.0), nearest, start + 1.0)
            # unless the gradients do not cancel without these tasks.
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
    # Rounding can make the equations of the last set singular; the weights of the tableau are used then.
    if not backend.known(xp.isfinite(weights).all()):
        on_the_way = xp.where(active, tableau[:tasks, tasks] - amount * tableau[:tasks, tasks + 1], 0.0)
        weights = xp.where(xp.isfinite(weights), weights, on_the_way.clip(0.0))
    # A length that differs from 1 by rounding is made 1. Where the path got stuck, x is shorter.
    length = backend.select(square > 1.0 - 1e-6, square, square * 0.0 + 1.0) ** 0.5
    return PathEnd(weights / length if to_length else weights, square.clip(0.0) ** 0.5 / length, stuck, ray)


def _refined(
    backend: Backend, cosines: Any, amounts: Any, offsets: Any, active: Any, amount: Any, reached: Any | None
) -> tuple[Any, Any]:
    """Return v and |x|^2 for the last set A of the path, free of the rounding errors of its pivots.

    Solves C_AA v_A = nu n_A - q_A with the given cosines. Where |x| = 1 was `reached`, nu is computed anew.
    Tasks with a negative weight leave A, and the equations are solved again without them: clipping the
    weight alone would violate the equations of the others.
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
    # |x|^2 = v'Cv = v'(nu n - q) by the equations of v. v'Cv itself would lose all digits where gradients
    # nearly cancel and weights are large.
    square = (weights.clip(0.0) * xp.where(active, amount * amounts - offsets, 0.0)).sum()
    return weights.clip(0.0), square


def _made(backend: Backend, cosines: Any, amounts: Any, offsets: Any, active: Any) -> Any:
    """Return the tableau after pivots on all of A, computed by one stable solve.

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
    # The rows of s = q - nu n + C v, bordered by q and n. Pivots on A turn the corner [2, 2] into minus
    # q'C_AA^-1 q, q'C_AA^-1 n and n'C_AA^-1 n, the coefficients of |x|^2 as a function of nu.
    beside = xp.stack((offsets, amounts), 1)
    corner = (beside.T @ beside) * 0.0
    return xp.concatenate((xp.concatenate((cosines, beside), 1), xp.concatenate((beside.T, corner), 1)), 0)


def _length_one(backend: Backend, tableau: Any) -> Any:
    """Return the nu at which |x| is 1, for the present A."""
    return _root(backend, -tableau[-2, -2], -tableau[-2, -1], -tableau[-1, -1])


def _root(backend: Backend, qq: Any, qn: Any, nn: Any) -> Any:
    """Return the larger nu at which |x|^2 = nn nu^2 - 2 qn nu + qq is 1; infinite where nu changes nothing.

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

    Its row s_i = p v_i + ... is solved for v_i, which is then inserted into all other rows.
    """
    column = backend.column(tableau, index)
    pivot = backend.at(column, index)
    row = backend.put(backend.at(tableau, index) / -pivot, index, 1.0 / pivot)
    tableau = backend.blank_column(tableau, index) + column[:, None] * row[None, :]
    return backend.put(tableau, index, row), backend.put(active, index, ~backend.at(active, index))
