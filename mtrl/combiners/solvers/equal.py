"""Weights of the direction that projects equally onto all unit gradients (IMTL-G, ConFIG)."""

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners.solvers.backends import Array, problem, solve
from mtrl.combiners.solvers.gramian import rounding_ridge
from mtrl.combiners.solvers.path import units_of

SOLVES = 6


def equal_projections(gram: Tensor, *, projected: bool) -> Tensor:
    """Return the weights [T], float64, of a direction whose products with all unit gradients are equal.

    With the cosines C, v solves C v = 1, and w_i = v_i / |g_i|. Tasks with a zero gradient weigh 0.

    A ridge r makes C definite. Each further solve, for what the ridge left of the equations, multiplies its
    effect along eigenvectors of C by r / (r + eigenvalue). Along those at the level of rounding, where no
    solution exists, the ridge is only divided by the number of solves.

    Args:
        gram: M [T, T].
        projected: Scale the direction to the mean projection of the gradients onto it; otherwise scale the
            weights to sum 1. A negative sum becomes -1, because scaling it to 1 would make all tasks worse,
            and one below a thousandth of the weights' magnitudes counts as that.
    """
    return solve("equal", gram, numbers=(float(projected), len(gram) * rounding_ridge(gram)))


@problem("equal", lambda tasks: (tasks,))
def _equal(gram: Array, projected: float, ridge: float) -> Array:
    tasks = len(gram)
    inverse = units_of(gram).inverse
    there = np.where(inverse > 0.0, 1.0, 0.0)
    # Rounded alike on and off the diagonal: opposite gradients then have the same weight.
    cosines = gram * inverse[:, None] * inverse[None, :]
    factor = torch.linalg.cholesky_ex(torch.from_numpy(cosines + np.eye(tasks) * ridge))[0]
    equal = np.zeros(tasks)
    for _ in range(SOLVES):
        left = torch.from_numpy(there - cosines @ equal).unsqueeze(-1)
        equal = equal + torch.cholesky_solve(left, factor)[:, 0].numpy()
    # Scaled first: where no direction exists the solution itself is as large as 1 / ridge.
    if projected:
        equal = equal / abs(equal).max().clip(1e-300)
        products = cosines @ equal
        # Below the cosines' rounding error the squared length is unknown; the direction then vanishes.
        square = (equal @ products).clip(ridge / 16.0 * abs(equal).sum() ** 2)
        length = (products * gram.diagonal().clip(0.0) ** 0.5).sum() / tasks
        weights: Array = equal * inverse * length / (square if square > 0.0 else 1.0)
        return weights
    raw = equal / equal.sum().clip(1e-300) * inverse
    total = max(abs(raw.sum()), 1e-3 * abs(raw).sum())
    scaled: Array = raw / (total if total > 0.0 else 1.0)
    return scaled
