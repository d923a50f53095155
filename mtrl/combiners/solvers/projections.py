"""Projections of all task gradients on the cone of directions that harm no task, as one batch (UPGrad).

For each task i a quadratic program in the gradients' weights: min v'Mv subject to v >= e_i. With x = v - e_i
and C the cosines, its optimum is x >= 0, y = Cx + Ce_i >= 0, x'y = 0. Two stages:

1. Newton steps on active sets (a primal-dual active-set method), all programs at once, from x = 0: exact once
   the sets are right. A step is kept only if it lowers the violation. This is usually enough.
2. Programs that are still unsolved, of gradients that depend on each other, follow a path each (see `path`).
   In the worst case, fifty gradients of rank 25, that takes .3 s.

A CUDA device takes the second way for all programs, one block each.
"""

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners.solvers import operations as op
from mtrl.combiners.solvers.backends import MOST_TASKS, padded, portable, problem, solve
from mtrl.combiners.solvers.gramian import cosines
from mtrl.combiners.solvers.operations import Array
from mtrl.combiners.solvers.path import follow, or_one, tolerance_of, units_of

_EXACT_STEPS = 5
_MOST_ENTRIES = 2**25  # of the matrices [T, T] of the programs that are solved at once, 256 MiB
_SOLVED = 1e-12  # violation of optimality at which a program of unit gradients counts as solved
# Of dependent cosines (see `follow`): the ridge keeps them apart.
_TOLERANCE = tolerance_of(0.0)


def cone_weights(matrix: Tensor, *, ridge: float) -> Tensor:
    """Return V [T, T] in float64; `V[i] @ G` is the projection of unit gradient i of the Gramian M [T, T].

    The rows of G are the gradients over their norms (zero gradients count as orthogonal to all others) and
    the cone is {d: G d >= 0}. `ridge`, the rounding error of M's entries, is added to the Gramian of G, since
    the programs of dependent gradients have many solutions without it. Finite for every finite M.
    """
    return solve("cone_weights", matrix, numbers=(ridge,))


@problem("cone_weights", lambda tasks: (tasks, tasks), MOST_TASKS)
@torch.no_grad()
def _cone_weights(gram: Array, ridge: float) -> Array:
    cosine, unit = _scaled(torch.from_numpy(gram), ridge=ridge)
    at_once = max(1, _MOST_ENTRIES // len(cosine) ** 2)
    found = [_exact(cosine, unit, asked) for asked in cosine.split(at_once)]
    x, violated = (torch.cat(part) for part in zip(*found, strict=True))
    bound = max(_SOLVED, 1e-2 * ridge)
    if not float(violated.amax()) < bound:
        x = _walked(cosine, unit, x, violated, bound)
    weights: Array = (x + unit).numpy()
    return weights


def cone_projection(gram: Tensor, weights: Tensor, *, ridge: float) -> Tensor:
    """Return v [T] in float64: `v @ J` is the projection of `weights @ J` on the cone {d: J d >= 0}.

    v minimises v'Mv subject to v >= weights, [T] and >= 0, for the Gramian M [T, T]. What the projection adds
    is the shortest x with g_i.x >= -g_i.g0 for all tasks, g0 = weights @ J: the end nu = 0 of a path (see
    `path`) with amounts 1. `ridge` is as for `cone_weights`.
    """
    return solve("cone_projection", gram, (weights,), (ridge,))


@portable("cone_projection")
def projection(gram: Array, wanted: Array, tasks: int, ridge: float) -> Array:
    """Return the weights of `cone_projection`."""
    cosines, inverse, _, there = units_of(gram)
    parts = wanted * op.root(op.at_least(op.diagonal(gram), 0.0))
    most = or_one(op.largest(parts))
    added: Array = _added(cosines, there, parts / most, tasks, ridge) * inverse * most
    return wanted + added


def unit_projection(gram: Array, unit: Array, tasks: int, ridge: float) -> Array:
    """Return one row of `cone_weights`, given that row of the identity matrix."""
    cosines, _, _, there = units_of(gram)
    whole = op.with_diagonal(cosines, there * 0.0 + 1.0)  # of unit gradients none fades
    return unit + _added(whole, there, unit, tasks, ridge)


def _added(cosines: Array, there: Array, parts: Array, tasks: int, ridge: float) -> Array:
    """Return weights >= 0 of the shortest x with g_i.x >= -g_i.g0 for unit gradients, g0 = parts @ G."""
    matrix = op.with_diagonal(cosines, op.diagonal(cosines) + ridge)
    weights, _, _ = follow(matrix, there, op.times(matrix, parts), tasks, False, False, _TOLERANCE)
    return weights


def violation(cosine: Tensor, weights: Tensor) -> Tensor:
    """Return for each row of `weights` [T, T] the largest |min(x, y)| [T, 1]: 0 exactly at the optimum.

    x = v[i] - e_i are the weights that the projection adds, y = C v[i] the multipliers of x >= 0.
    """
    x = weights - torch.eye(len(cosine), dtype=weights.dtype, device=weights.device)
    return torch.minimum(x, weights @ cosine).abs().amax(dim=-1, keepdim=True)


def _scaled(matrix: Tensor, *, ridge: float) -> tuple[Tensor, Tensor]:
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.add(cosines(matrix)[0], unit, alpha=ridge), unit


def _walked(cosine: Tensor, unit: Tensor, x: Tensor, violated: Tensor, bound: float) -> Tensor:
    x = x.clone()
    # These cosines include the ridge already.
    matrix, there = padded(cosine.numpy()), padded(np.ones(len(cosine)))
    for program in torch.nonzero(violated[:, 0] > bound)[:, 0].tolist():
        added = _added(matrix, there, padded(unit[program].numpy()), len(cosine), 0.0)
        walked = torch.from_numpy(added[: len(cosine)])
        product = cosine @ walked + cosine[program]
        if float(torch.minimum(walked, product).abs().amax()) < float(violated[program]):
            x[program] = walked
    return x


# Row i of x [n, T] belongs to program i; row i of `asked` [n, T] is its linear term Ce_i.


def _exact(cosine: Tensor, unit: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Return x [n, T] after the exact steps and each program's violation of optimality [n, 1]."""
    x = torch.zeros_like(asked)
    free, violated = asked < 0.0, asked.clamp(max=0.0).abs().amax(dim=-1, keepdim=True)
    for _ in range(_EXACT_STEPS):
        x, free, violated = _exact_step(cosine, unit, asked, x, free, violated)
        if float(violated.amax()) < _SOLVED:
            break
    return x, violated


def _exact_step(
    cosine: Tensor, unit: Tensor, asked: Tensor, x: Tensor, free: Tensor, violated: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    within = free.unsqueeze(-1) & free.unsqueeze(-2)
    factor = torch.linalg.cholesky_ex(torch.where(within, cosine, unit), check_errors=False)[0]
    new_x = _solved(factor, torch.where(free, -asked, 0.0))
    free = new_x > torch.where(free, 0.0, torch.addmm(asked, new_x, cosine))
    new_x = new_x.clamp(min=0.0)
    new_y = torch.addmm(asked, new_x, cosine)
    new_violated = torch.minimum(new_x, new_y).abs().amax(dim=-1, keepdim=True)
    x = torch.where(new_violated < violated, new_x, x)
    return x, free, torch.fmin(new_violated, violated)


def _solved(factor: Tensor, right: Tensor) -> Tensor:
    # Twice as fast as torch.cholesky_solve for a batch of fifty systems.
    half = torch.linalg.solve_triangular(factor, right.unsqueeze(-1), upper=False)
    solution: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return solution.squeeze(-1)
