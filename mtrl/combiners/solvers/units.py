"""Task gradients in units of their own lengths: what makes a solve safe whatever the norms are."""

from __future__ import annotations

from typing import Any, NamedTuple

from mtrl.combiners.solvers.roads import Road

# Square of the length, relative to the longest gradient, at which a gradient fades out. Far below what any
# dtype resolves next to the longest one: 1e12 times as short it still counts to 8 digits.
_FADING = 1e-32


class Units(NamedTuple):
    """Unit gradients and how the gradients themselves follow from them."""

    cosines: Any  # [T, T], with ones on the diagonal; fading gradients have more there
    inverse: Any  # [T], one over the length; 0 for a zero gradient
    amounts: Any  # [T], one over the length in units of the largest of these; 0 for a zero gradient


def units_of(road: Road, gram: Any) -> Units:
    """Return the unit gradients of a Gramian [T, T].

    A zero gradient is left out: no direction changes its task, so it does not enter maximisations of the
    worst improvement. So that a method depends continuously on the gradients, one of relative length rho
    counts with a share rho^2 / (rho^2 + 1e-32): what is asked for on its behalf is multiplied by that, its
    squared unit length is divided by it.
    """
    xp = road.xp
    squares = gram.diagonal().clip(0.0)
    there = squares > 0.0
    inverse = xp.where(there, squares**-0.5, 0.0)
    fading = xp.where(there, squares.max() / squares * _FADING, 0.0) + 1.0
    # Ones on the diagonal, also of who is left out.
    cosines = road.with_diagonal(gram * inverse[:, None] * inverse[None, :], fading)
    shares = inverse / fading
    most = shares.max()
    return Units(cosines, inverse, shares / xp.where(most > 0.0, most, 1.0))


def tolerance_of(eps: float) -> float:
    """Error of a cosine (see `path.follow`) where the Gramian's entries have the relative error `eps`."""
    return max(8.0 * eps, 1e-11)
