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

from typing import NamedTuple

import numpy as np

from mtrl.combiners.solvers.backends import Array

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

    cosines: Array  # [T, T], with ones on the diagonal; fading gradients have more there
    inverse: Array  # [T], one over the length; 0 for a zero gradient
    amounts: Array  # [T], one over the length in units of the largest of these; 0 for a zero gradient


def units_of(gram: Array) -> Units:
    """Return the unit gradients of a Gramian [T, T].

    No direction changes the task of a zero gradient, so maximisations of the worst improvement leave it out.
    To keep methods continuous in the gradients, a gradient of length rho relative to the longest gets the
    share rho^2 / (rho^2 + 1e-32). The improvement required of its task is multiplied by this share, and the
    squared length of its unit gradient is divided by it.
    """
    squares = gram.diagonal().clip(0.0)
    there = squares > 0.0
    inverse = np.where(there, squares**-0.5, 0.0)
    fading = np.where(there, squares.max() / squares * _FADING, 0.0) + 1.0
    cosines = gram * inverse[:, None] * inverse[None, :]
    np.fill_diagonal(cosines, fading)  # ones also for gradients that are left out
    shares = inverse / fading
    most = shares.max()
    return Units(cosines, inverse, shares / (most if most > 0.0 else 1.0))


def tolerance_of(eps: float) -> float:
    """Error of a cosine (see `path.follow`) where the Gramian's entries have the relative error `eps`."""
    return max(8.0 * eps, 1e-11)


class PathEnd(NamedTuple):
    """Where a path ended."""

    weights: Array  # [T], v
    length: float  # |x|
    stuck: bool  # whether no x reaches a larger nu; v then belongs to the largest nu, and |x| < 1
    ray: Array  # [T] >= 0; where stuck, weights of unit gradients that cancel, otherwise zeros

    @property
    def dual(self) -> Array:
        """The dual's weights of the unit gradients up to a factor: v, or the ray of a stuck path."""
        return self.ray if self.stuck else self.weights


def follow(
    cosines: Array,
    amounts: Array,
    offsets: Array,
    *,
    to_length: bool,
    tolerance: float,
    first: int | None = None,
) -> PathEnd:
    """Follow the path to |x| = 1 (`to_length`) or to nu = 0.

    Args:
        cosines: C [T, T]; a task that is left out has zeros off the diagonal, and amount and offset zero.
        amounts: n [T].
        offsets: q [T].
        to_length: Whether the path ends at |x| = 1 instead of nu = 0.
        tolerance: Rounding error of a cosine, which decides when gradients count as dependent.
        first: A task of zero amount and negative offset, which is in A from the beginning.
    """
    tasks = len(amounts)
    tableau = _tableau(cosines, amounts, offsets)
    active, replaced = np.zeros(tasks, bool), np.zeros(tasks, bool)
    reached = stuck = shaky = False
    ray, amount = np.zeros(tasks), -np.inf
    # A rate is a difference of amounts and counts as zero below their rounding error. `most` is the largest
    # such error among the tasks that were at a corner so far.
    slowest, most = amounts * (tolerance * _STEEP), 0.0
    if first is not None:
        tableau = _pivoted(tableau, active, first)
    for _ in range(10 * tasks + 50):  # random problems with 25 tasks have up to 47 corners
        # For the present A, values - nu rates are the weights of the tasks in A and the slacks of the others.
        # Each that falls reaches 0 at nu = values / rates, and the first of these is the next corner.
        values, rates = tableau[:tasks, tasks], tableau[:tasks, tasks + 1]
        # The slack of an exact copy of a task in A has the rate 0 up to the rounding error of A's rates.
        copied = np.where(active, abs(rates), 0.0).sum() * _ROUNDING
        corners = np.where(rates > slowest + (most + copied), values / rates, np.inf)
        nearest = int(corners.argmin())
        corner = amount if amount > corners[nearest] else corners[nearest]
        end = _root(-tableau[-2, -2], -tableau[-2, -1], -tableau[-1, -1]) if to_length else 0.0
        amount = corner if corner < end else end
        if end <= corner:
            reached = True
            break
        # A gradient that is a mix of those in A cannot enter by itself, because C_AA would become singular.
        # Its weight grows at the same nu and x while the weights of the mix shrink. The first of these to
        # reach 0 leaves A, and the gradient takes its place. If none shrinks, gradients cancel, and nu cannot
        # grow further.
        own = tableau[nearest, nearest]  # squared distance of this gradient from the span of A
        most = max(most, slowest[nearest])
        if not own > _CLEARLY:
            mix = np.where(active, -tableau[:tasks, nearest], 0.0)  # of the nearest vector in that span
            bound = tolerance * (1.0 + mix @ mix)
            if replaced[nearest]:
                bound = bound * _AGAIN
            if not active[nearest] and own < bound:
                # If task i leaves, the squared distance grows by mix_i^2 / (C_AA^-1)_ii. Where this is below
                # the bound, mix_i is a rounding error, and task i is no candidate for leaving,
                share = mix * mix > bound * tableau.diagonal()[:tasks]
                alone = (-mix).clip(0.0)
                alone[nearest] = 1.0
                # unless the gradients do not cancel without these tasks.
                share = share | (alone @ (cosines @ alone) > _CANCELLED * bound)
                shrinks = (mix > 0.0) & share
                room = np.where(shrinks, (values - amount * rates) / np.where(shrinks, mix, 1.0), np.inf)
                leaving = int(room.argmin())
                if room[leaving] == np.inf:
                    stuck, ray = True, alone
                    break
                tableau = _pivoted(tableau, active, leaving)
                replaced[leaving] = True
            shaky = shaky or own < _SHAKY
        tableau = _pivoted(tableau, active, nearest)
        if shaky:
            tableau = _made(cosines, amounts, offsets, active)
    amount = amount if abs(amount) < np.inf else 0.0  # infinite while A is empty
    weights, square = _refined(cosines, amounts, offsets, active, amount, to_length and reached)
    # Rounding can make the equations of the last set singular; the weights of the tableau are used then.
    if not np.isfinite(weights).all():
        on_the_way = np.where(active, tableau[:tasks, tasks] - amount * tableau[:tasks, tasks + 1], 0.0)
        weights = np.where(np.isfinite(weights), weights, on_the_way.clip(0.0))
    # A length that differs from 1 by rounding is made 1. Where the path got stuck, x is shorter.
    length = (square if square > 1.0 - 1e-6 else 1.0) ** 0.5
    return PathEnd(weights / length if to_length else weights, max(square, 0.0) ** 0.5 / length, stuck, ray)


def _refined(
    cosines: Array, amounts: Array, offsets: Array, active: Array, amount: float, reached: bool
) -> tuple[Array, float]:
    """Return v and |x|^2 for the last set A of the path, free of the rounding errors of its pivots.

    Solves C_AA v_A = nu n_A - q_A with the given cosines. Where |x| = 1 was `reached`, nu is computed anew.
    Tasks with a negative weight leave A, and the equations are solved again without them: clipping the
    weight alone would violate the equations of the others.
    """
    beside = np.stack((offsets, amounts), 1)
    for _ in range(len(amounts) + 1):
        among = active[:, None] & active[None, :]
        matrix = np.where(among, cosines, 0.0)
        np.fill_diagonal(matrix, np.where(active, cosines.diagonal(), 1.0))
        right = np.where(active[:, None], beside, 0.0)
        both = solved(matrix, right)
        if reached:
            squares = right.T @ both
            nu = _root(squares[0, 0], squares[0, 1], squares[1, 1])
            amount = nu if nu < np.inf else amount  # infinite if A is empty
        weights = amount * both[:, 1] - both[:, 0]
        lost = weights < 0.0
        if not lost.any():
            break
        active = active & ~lost
    # |x|^2 = v'Cv = v'(nu n - q) by the equations of v. v'Cv itself would lose all digits where gradients
    # nearly cancel and weights are large.
    square = (weights.clip(0.0) * np.where(active, amount * amounts - offsets, 0.0)).sum()
    return weights.clip(0.0), square


def _made(cosines: Array, amounts: Array, offsets: Array, active: Array) -> Array:
    """Return the tableau after pivots on all of A, computed by one stable solve.

    With K the first tableau and B the rest: [K_AA^-1, -K_AA^-1 K_AB; K_BA K_AA^-1, K_BB - K_BA K_AA^-1 K_AB].
    """
    whole = _tableau(cosines, amounts, offsets)
    inside = np.concatenate((active, [False, False]))
    unit = np.eye(len(whole))
    matrix = np.where(inside[:, None] & inside[None, :], whole, np.where(inside[:, None], 0.0, unit))
    right = np.concatenate((np.where(inside[:, None], whole, 0.0), np.where(inside[:, None], unit, 0.0)), 1)
    both = solved(matrix, right)
    shares, inverse = both[:, : len(whole)], both[:, len(whole) :]
    outside = whole - whole @ shares
    across = np.where(inside[None, :], inverse, -shares)
    return np.where(inside[:, None], across, np.where(inside[None, :], shares.T, outside))


def _tableau(cosines: Array, amounts: Array, offsets: Array) -> Array:
    # The rows of s = q - nu n + C v, bordered by q and n. Pivots on A turn the corner [2, 2] into minus
    # q'C_AA^-1 q, q'C_AA^-1 n and n'C_AA^-1 n, the coefficients of |x|^2 as a function of nu.
    beside = np.stack((offsets, amounts), 1)
    return np.block([[cosines, beside], [beside.T, np.zeros((2, 2))]])


def solved(matrix: Array, right: Array) -> Array:
    """Return `matrix^-1 right`; NaN where there is none."""
    try:
        return np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return right * np.nan


def _root(qq: float, qn: float, nn: float) -> float:
    """Return the larger nu at which |x|^2 = nn nu^2 - 2 qn nu + qq is 1; infinite where nu changes nothing.

    |x|^2 = v'Cv with v_A = C_AA^-1 (nu n_A - q_A); along the path it grows with nu.
    """
    if not nn > 0.0:
        return np.inf
    square = qn * qn - nn * (qq - 1.0)
    root: float = (qn + (0.0 if square < 0.0 else square) ** 0.5) / nn
    return root


def _pivoted(tableau: Array, active: Array, index: int) -> Array:
    """Exchange slack and weight of one task: it enters A or leaves it, which `active` notes in place.

    Its row s_i = p v_i + ... is solved for v_i, which is then inserted into all other rows.
    """
    column = tableau[:, index].copy()
    row = tableau[index] / -column[index]
    row[index] = 1.0 / column[index]
    tableau[:, index] = 0.0
    tableau = tableau + column[:, None] * row[None, :]
    tableau[index] = row
    active[index] = not active[index]
    return tableau
