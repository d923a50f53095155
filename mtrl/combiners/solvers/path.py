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

from typing import Any

from mtrl.combiners.solvers import operations as op
from mtrl.combiners.solvers.operations import Array

# Squared length, relative to the longest gradient, at which a gradient counts half. A gradient that is 1e12
# times shorter than the longest still counts to 8 digits.
_FADING = 1e-32
_FADED = 1e100  # a gradient that fades more than this is as good as zero

_STEEP = 0.1  # a rate below this share of the rounding error of the amounts counts as zero
_ROUNDING = 1e-14  # relative rounding error of a sum over the tasks in double precision
# A unit gradient depends on those in A if its squared distance from their span is below a bound, the largest
# squared distance that rounding errors of the cosines can make of zero.
_CANCELLED = 4.0  # a mix of gradients cancels if its squared length is below this many bounds
_AGAIN = 0.125  # share of the bound for a task that was replaced before: two tasks could take turns for ever
_SHAKY = 1e-6  # a pivot on a squared distance below this costs digits: the tableau is then computed anew
_CLEARLY = 1e-2  # a unit gradient at this squared distance is independent in any dtype
_NEARLY_ONE = 1.0 - 1e-6  # a squared length that differs from 1 by rounding is above this


def units_of(gram: Array) -> tuple[Array, Array, Array, Array]:
    """Return the unit gradients of a Gramian [N, N], and how the gradients themselves follow from them.

    No direction changes the task of a zero gradient, so maximisations of the worst improvement leave it out.
    To keep methods continuous in the gradients, a gradient of length rho relative to the longest gets the
    share rho^2 / (rho^2 + 1e-32). The improvement required of its task is multiplied by this share, and the
    squared length of its unit gradient is divided by it.

    Returns:
        cosines: [N, N], with ones on the diagonal; fading gradients have more there.
        inverse: [N], one over the length; 0 for a zero gradient.
        amounts: [N], one over the length in units of the largest of these; 0 for a zero gradient.
        there: [N], 1 for a gradient that is not zero, otherwise 0.
    """
    squares = op.diagonal(gram)
    present = squares > 0.0
    exact = op.where(present, squares, 1.0)
    inverse = op.where(present, 1.0 / op.root(exact), 0.0)
    fading = op.largest(op.where(present, squares, 0.0)) * _FADING / exact
    fading = op.where(present, op.where(fading > _FADED, _FADED, fading), 0.0) + 1.0
    cosines = gram * inverse[:, None] * inverse[None, :]
    shares = inverse / fading
    amounts = shares / or_one(op.largest(shares))
    return op.with_diagonal(cosines, fading), inverse, amounts, op.where(present, 1.0, shares * 0.0)


def tolerance_of(eps: float) -> float:
    """Error of a cosine (see `path.follow`) where the Gramian's entries have the relative error `eps`."""
    return max(8.0 * eps, 1e-11)


def larger(first: Any, second: Any) -> Any:
    """Return the larger of two numbers, the first if they cannot be compared."""
    return op.select(second > first, second, first)


def smaller(first: Any, second: Any) -> Any:
    """Return the smaller of two numbers, the first if they cannot be compared."""
    return op.select(second < first, second, first)


def or_one(value: Any) -> Any:
    """Return a positive number, or 1: a divisor."""
    return op.select(value > 0.0, value, 1.0)


def follow(
    cosines: Array,
    amounts: Array,
    offsets: Array,
    tasks: int,
    to_length: bool,
    with_last: bool,
    tolerance: float,
) -> tuple[Array, Array, float]:
    """Follow the path to |x| = 1 (`to_length`) or to nu = 0.

    Args:
        cosines: C [N, N], N >= T + 2; a task that is left out has zeros off the diagonal.
        amounts: n [N], 0 for a task that is left out.
        offsets: q [N], likewise.
        tasks: T.
        to_length: Whether the path ends at |x| = 1 instead of nu = 0.
        with_last: Whether the last task, of zero amount and negative offset, is in A from the beginning.
        tolerance: Rounding error of a cosine, which decides when gradients count as dependent.

    Returns:
        weights: v [N].
        dual: The dual's weights [N] of the unit gradients up to a factor. They are v, except where no x
            reaches a larger nu. v then belongs to the largest nu, and these are weights of gradients that
            cancel.
        length: |x|, which is below 1 where no x reaches a larger nu.
    """
    # The rows of s = q - nu n + C v, bordered by q and n. Pivots on A turn the corner [2, 2] into minus
    # q'C_AA^-1 q, q'C_AA^-1 n and n'C_AA^-1 n, the coefficients of |x|^2 as a function of nu.
    whole = op.joined(op.joined(cosines, offsets, tasks), amounts, tasks + 1)
    tableau = whole
    index = op.indices(amounts)
    active = amounts < 0.0  # none
    replaced = active
    if with_last:
        tableau = op.pivoted(tableau, tasks - 1)
        active = index == tasks - 1
    # A rate is a difference of amounts and counts as zero below their rounding error. `most` is the largest
    # such error among the tasks that were at a corner so far.
    slowest = op.where(index < tasks, amounts * (tolerance * _STEEP), op.INF)
    most = op.real(0.0)
    amount = op.real(-op.INF)
    ray = amounts * 0.0
    reached = False
    stuck = False
    shaky = False
    corners_left = 10 * tasks + 50  # up to 66 were seen (docs/methods.md)
    while corners_left > 0:
        corners_left -= 1
        # For the present A, values - nu rates are the weights of the tasks in A and the slacks of the others.
        # Each that falls reaches 0 at nu = values / rates, and the first of these is the next corner.
        values = op.column(tableau, tasks)
        rates = op.column(tableau, tasks + 1)
        # The slack of an exact copy of a task in A has the rate 0 up to the rounding error of A's rates.
        copied = op.total(op.where(active, abs(rates), 0.0)) * _ROUNDING
        corners = op.where(rates > slowest + (most + copied), values / rates, op.INF)
        nearest = op.argmin(corners)
        corner = larger(op.entry(corners, nearest), amount)
        end = op.real(0.0)
        if to_length:
            end = _where_one(-op.entry(values, tasks), -op.entry(rates, tasks), -op.entry(rates, tasks + 1))
        amount = smaller(end, corner)
        if end <= corner:
            reached = True
            corners_left = 0
        else:
            # A gradient that is a mix of those in A cannot enter by itself, because C_AA would become
            # singular. Its weight grows at the same nu and x while the weights of the mix shrink. The first
            # of these to reach 0 leaves A, and the gradient takes its place. If none shrinks, gradients
            # cancel, and nu cannot grow further.
            most = larger(most, op.entry(slowest, nearest))
            products = op.column(tableau, nearest)
            own = op.entry(products, nearest)  # squared distance of this gradient from the span of A
            if not own > _CLEARLY:
                mix = op.where(active, -products, 0.0)  # of the nearest vector in that span
                bound = tolerance * (1.0 + op.total(mix * mix))
                bound = op.select(op.holds(replaced, nearest), bound * _AGAIN, bound)
                if (not op.holds(active, nearest)) and own < bound:
                    # If task i leaves, the squared distance grows by mix_i^2 / (C_AA^-1)_ii. Where this is
                    # below the bound, mix_i is a rounding error, and task i is no candidate for leaving,
                    # unless the gradients do not cancel without these tasks.
                    alone = op.where(index == nearest, 1.0, op.at_least(-mix, 0.0))
                    apart = op.total(alone * op.times(cosines, alone))
                    least = op.select(apart > _CANCELLED * bound, 0.0, bound)
                    shrinks = (mix > 0.0) & (mix * mix > least * op.diagonal(tableau))
                    room = op.where(shrinks, (values - amount * rates) / op.where(shrinks, mix, 1.0), op.INF)
                    leaving = op.argmin(room)
                    if op.entry(room, leaving) == op.INF:
                        stuck = True
                        ray = alone
                        corners_left = 0
                    else:
                        tableau = op.pivoted(tableau, leaving)
                        active = op.flipped(active, leaving)
                        replaced = replaced | (index == leaving)
                shaky = shaky | (own < _SHAKY)
            if not stuck:
                tableau = op.pivoted(tableau, nearest)
                active = op.flipped(active, nearest)
                if shaky:
                    tableau = op.pivoted_on(whole, active)
    amount = op.select(abs(amount) < op.INF, amount, 0.0)  # infinite while A is empty
    on_the_way = op.column(tableau, tasks) - amount * op.column(tableau, tasks + 1)
    on_the_way = op.where(active, op.at_least(on_the_way, 0.0), 0.0)
    # The weights of the last set, free of the rounding errors of the pivots: C_AA v_A = nu n_A - q_A is
    # solved with the given cosines. Where |x| = 1 was reached, nu is computed anew. Tasks with a negative
    # weight leave A, and the equations are solved again without them: clipping the weight alone would violate
    # the equations of the others.
    weights = ray
    repairs = tasks + 1
    while repairs > 0:
        repairs -= 1
        free, along = op.solutions(whole, active, tasks)
        if to_length:
            nu = _where_one(op.total(offsets * free), op.total(offsets * along), op.total(amounts * along))
            amount = op.select(reached & (nu < op.INF), nu, amount)  # infinite if A is empty
        weights = amount * along - free
        lost = weights < 0.0
        if not op.any_of(lost):
            repairs = 0
        active = active & ~lost
    weights = op.at_least(weights, 0.0)
    # |x|^2 = v'Cv = v'(nu n - q) by the equations of v. v'Cv itself would lose all digits where gradients
    # nearly cancel and weights are large.
    square = op.total(weights * op.where(active, amount * amounts - offsets, 0.0))
    # Rounding can make the equations of the last set singular; the weights of the tableau are used then.
    weights = op.where(abs(weights) < op.INF, weights, on_the_way)
    length = op.real(1.0)
    if to_length:  # a length that differs from 1 by rounding is made 1
        length = op.root(op.select(square > _NEARLY_ONE, square, 1.0))
        weights = weights / length
    return weights, op.where(stuck, ray, weights), op.root(larger(square, 0.0)) / length


def _where_one(qq: Any, qn: Any, nn: Any) -> Any:
    """Return the larger nu at which |x|^2 = nn nu^2 - 2 qn nu + qq is 1; infinite where nu changes nothing.

    |x|^2 = v'Cv with v_A = C_AA^-1 (nu n_A - q_A); along the path it grows with nu.
    """
    square = qn * qn - nn * (qq - 1.0)
    return op.select(nn > 0.0, (qn + op.root(larger(square, 0.0))) / or_one(nn), op.INF)
