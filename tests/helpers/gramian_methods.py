"""Independent references of the methods that need the Gramian alone, and what they imply for a direction.

Their solvers are imported where they are used: tests on a GPU need the rest of this file alone.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize
import torch
from torch import Tensor


def shortest_in_hull(jacobian: Tensor) -> Tensor:
    """MGDA's direction by an active-set solver for least squares, which does not square the gradients.

    min |G'v|^2 + (v'n - 1)^2 over v >= 0 is reached at a multiple of the shortest point with v'n = 1.
    """
    # In units of each gradient's norm, because norms of many decades leave the solver no digits.
    norms = jacobian.norm(dim=1)
    unit = jacobian / norms.unsqueeze(-1)
    sums = (norms.min() / norms).numpy()
    rows = np.vstack([np.linalg.qr(unit.numpy().T)[1], sums])
    v = scipy.optimize.nnls(rows, np.append(np.zeros(len(rows) - 1), 1.0))[0]
    shortest: Tensor = torch.from_numpy(v / (sums @ v)) @ unit * norms.min()
    return shortest


def shortest_within_caps(jacobian: Tensor, cap: float) -> float:
    """Length of capped MGDA's direction by an active-set solver: min |G'w| over the simplex with w <= cap."""
    import quadprog

    tasks = len(jacobian)
    norms = jacobian.norm(dim=1)
    unit = jacobian / norms.unsqueeze(-1)
    cosine = (unit @ unit.T).numpy() + 1e-13 * np.eye(tasks)
    share = (norms.min() / norms).numpy()  # of a weight, in amounts of unit gradients
    constraints = np.column_stack([share, np.eye(tasks), -np.diag(share)])
    bounds = np.concatenate([[1.0], np.zeros(tasks), np.full(tasks, -cap)])
    amounts = quadprog.solve_qp(cosine, np.zeros(tasks), constraints, bounds, 1)[0]
    return float((torch.from_numpy(amounts * share) @ jacobian).norm())


def projected_on_cone(jacobian: Tensor) -> Tensor:
    """UPGrad's direction by an active-set solver: one program per task in the weights of unit gradients."""
    import quadprog

    tasks = len(jacobian)
    norms = jacobian.norm(dim=1)
    unit = jacobian / norms.unsqueeze(-1)
    cosine = (unit @ unit.T).numpy() + 1e-13 * np.eye(tasks)
    total = torch.zeros_like(jacobian[0])
    for task, norm in enumerate(norms):
        floor = np.eye(tasks)[task]
        v = quadprog.solve_qp(cosine, np.zeros(tasks), np.eye(tasks), floor)[0]
        total += norm * (torch.from_numpy(v) @ unit)
    return total / tasks


def best_steered_improvement(jacobian: Tensor, balance: float, c: float) -> float:
    """IMGrad's primal by a conic solver: max over |e| <= 1 of min_i <g_i, (1.5 - rho) g0 + rho c |g0| e>."""
    import cvxpy as cp

    rows = np.linalg.qr(jacobian.numpy().T)[1].T
    norms = np.linalg.norm(rows, axis=1)
    mean = rows.mean(axis=0)
    length = float(np.linalg.norm(mean))
    smallest = float(norms.min())
    unit, worst = cp.Variable(rows.shape[1]), cp.Variable()
    move = (1.5 - balance) * mean / length + balance * c * unit
    constraints = [(rows / norms[:, None]) @ move >= worst * (smallest / norms), cp.norm(unit) <= 1.0]
    problem = cp.Problem(cp.Maximize(worst), constraints)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert problem.status == "optimal", problem.status
    return float(problem.value) * smallest * length


def turned(jacobian: Tensor, order: Tensor, targets: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """GradVac's algorithm on the gradients themselves; returns the mean and the new targets [T, T]."""
    targets = targets.clone()
    running = jacobian.clone()
    for task, sequence in enumerate(order.tolist()):
        for other in sequence:
            length, reference = running[task].norm(), jacobian[other].norm()
            seen = float(running[task] @ jacobian[other] / (length * reference))
            goal = float(targets[task, other])
            if seen < goal:
                part = goal * math.sqrt(1.0 - seen**2) - seen * math.sqrt(1.0 - goal**2)
                share = length * part / (reference * math.sqrt(1.0 - goal**2))
                running[task] += share * jacobian[other]
            targets[task, other] = (1.0 - beta) * goal + beta * seen
    return running.mean(dim=0), targets


def assert_shortest(jacobian: Tensor, direction: Tensor) -> None:
    """The direction is a least-squares solver's, and every task improves by at least its squared norm."""
    longest = jacobian.norm(dim=1)
    assert (direction - shortest_in_hull(jacobian)).norm() <= 1e-6 * longest.min()
    slack = jacobian @ direction - direction.square().sum()
    assert (slack >= -1e-7 * longest * longest.min()).all()


def assert_shortest_within_caps(jacobian: Tensor, direction: Tensor, *, cap: float) -> None:
    """The direction is as long as an active-set solver's, and improves every mix within the caps enough.

    By at least its squared length: that bounds its length from above, and both together leave one vector.
    """
    tasks = len(jacobian)
    cap = max(cap, 1.0 / tasks)
    length = float(direction.norm())
    improvements = sorted((jacobian @ direction).tolist())
    whole = int(1.0 / cap + 1e-9)
    worst = cap * math.fsum(improvements[:whole])
    if whole < tasks:
        worst += (1.0 - whole * cap) * improvements[whole]
    scale = float(jacobian.norm(dim=1).min())
    assert worst >= length**2 * (1.0 - 1e-8) - 1e-8 * scale**2, (worst, length**2)
    assert length >= shortest_within_caps(jacobian, cap) * (1.0 - 1e-6) - 1e-6 * scale


def assert_fair(jacobian: Tensor, direction: Tensor, *, alpha: float) -> None:
    """All tasks improve, and weighing each by its improvement to the power -alpha gives the direction."""
    improvements = jacobian @ direction
    assert (improvements > 0.0).all()
    implied = improvements.pow(-alpha) @ jacobian
    assert (implied - direction).norm() <= 1e-6 * direction.norm()


def assert_best_steered(jacobian: Tensor, direction: Tensor, *, c: float) -> None:
    """The direction, not rescaled, is in CAGrad's ball and solves the conic program of its rho."""
    mean = jacobian.mean(dim=0)
    shortest = shortest_in_hull(jacobian)
    balance = 1e-4  # where no direction improves all tasks, up to rounding
    if shortest.norm() > 1e-7 * jacobian.norm(dim=1).min():
        cosine = torch.nn.functional.cosine_similarity(mean, shortest, dim=0, eps=0.0)
        balance = cosine.clamp(1e-4, 1.0).item()
    unit = (direction - mean) / (c * mean.norm())
    assert unit.norm() <= 1.0 + 1e-9
    move = (1.5 - balance) * mean + balance * c * mean.norm() * unit
    value = (jacobian @ move).min().item()
    best = best_steered_improvement(jacobian, balance, c)
    scale = max(abs(best), 1e-3 * (balance * c * mean.norm() * jacobian.norm(dim=1).min()).item())
    assert value >= best - 1e-6 * scale, (value, best)


def assert_equal_projections(jacobian: Tensor, direction: Tensor) -> None:
    """All unit gradients meet the same positive projection, and the weights sum to 1 or -1."""
    norms = jacobian.norm(dim=1, keepdim=True)
    unit = jacobian / norms
    projections = unit @ direction
    assert (projections > 0.0).all()
    torch.testing.assert_close(projections, projections.mean().expand_as(projections), rtol=1e-6, atol=0.0)
    weights = torch.linalg.lstsq(unit.T, direction.unsqueeze(-1)).solution / norms
    assert abs(abs(weights.sum().item()) - 1.0) < 1e-6


def assert_aligned(jacobian: Tensor, direction: Tensor) -> None:
    """The mean of the orthogonal factor of the polar decomposition, as long as the least singular value."""
    left, values, right = torch.linalg.svd(jacobian, full_matrices=False)
    kept = values > 1e-7 * values[0]
    expected = (left[:, kept].mean(dim=0) @ right[kept]) * values[kept][-1]
    # The Gramian holds squares: its eigenvalues are known to the rounding error of the largest.
    rounding = 1e-14 * len(values) * (values[0] / values[kept][-1]) ** 2
    assert (direction - expected).norm() <= (1e-9 + rounding) * values[kept][-1]


def assert_unconflicted(jacobian: Tensor, direction: Tensor) -> None:
    """The direction is a QP solver's, and no task gets worse."""
    norms = jacobian.norm(dim=1)
    assert (direction - projected_on_cone(jacobian)).norm() <= 1e-6 * norms.mean()
    assert (jacobian @ direction >= -1e-9 * norms * norms.mean()).all()


def assert_mean_unconflicted(jacobian: Tensor, direction: Tensor) -> None:
    """The direction is the mean plus the positive mix of rows that a solver of least squares finds."""
    norms = jacobian.norm(dim=1, keepdim=True)
    mean, unit = jacobian.mean(dim=0), jacobian / norms
    added = scipy.optimize.nnls(unit.T.numpy(), -mean.numpy())[0]
    assert (direction - mean - torch.from_numpy(added) @ unit).norm() <= 1e-7 * norms.mean()
    assert (unit @ direction >= -1e-9 * norms.mean()).all()


def assert_on_the_simplex(jacobian: Tensor, direction: Tensor) -> None:
    """The direction is a sum of the rows with positive weights that add up to 1."""
    norms = jacobian.norm(dim=1, keepdim=True)
    weights = torch.linalg.lstsq((jacobian / norms).T, direction.unsqueeze(-1)).solution / norms
    assert (weights > 0.0).all()
    assert abs(weights.sum().item() - 1.0) < 1e-6
