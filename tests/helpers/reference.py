"""Independent solvers of the methods' problems: a conic solver, an active-set QP solver, plain loops."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import quadprog
import torch
from torch import Tensor


def _row_space(jacobian: Tensor) -> np.ndarray:
    """Rows of the Jacobian in an orthonormal basis of their span: all the problems live there."""
    return np.linalg.qr(jacobian.numpy().T)[1].T


def _value(problem: cp.Problem) -> float:
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert problem.status == "optimal", problem.status
    value: float = problem.value
    return float(value)


def best_worst_improvement_in_ball(jacobian: Tensor, c: float) -> float:
    """CAGrad's primal: max_d min_i <g_i, d> subject to |d - g0| <= c |g0|."""
    rows = _row_space(jacobian)
    mean = rows.mean(axis=0)
    length = float(np.linalg.norm(mean))
    # In units of |g0| and with rows of unit length: the solver's tolerances are absolute.
    norms = np.linalg.norm(rows, axis=1)
    smallest = float(norms.min())
    direction, worst = cp.Variable(rows.shape[1]), cp.Variable()
    constraints = [
        (rows / norms[:, None]) @ direction >= worst * (smallest / norms),
        cp.norm(direction - mean / length) <= c,
    ]
    return _value(cp.Problem(cp.Maximize(worst), constraints)) * smallest * length


def best_worst_improvement_in_cap(jacobian: Tensor, c: float) -> float:
    """ConicGrad's primal: max_d min_i <g_i, d> subject to |d| <= 1 and <g0, d> >= c |g0|."""
    rows = _row_space(jacobian)
    mean = rows.mean(axis=0)
    norms = np.linalg.norm(rows, axis=1)
    smallest = float(norms.min())
    direction, worst = cp.Variable(rows.shape[1]), cp.Variable()
    constraints = [
        (rows / norms[:, None]) @ direction >= worst * (smallest / norms),
        cp.norm(direction) <= 1.0,
        (mean / np.linalg.norm(mean)) @ direction >= c,
    ]
    return _value(cp.Problem(cp.Maximize(worst), constraints)) * smallest


def direction_oriented(jacobian: Tensor, lam: float) -> Tensor:
    """SDMGrad: w on the simplex minimises 1/2 w'Mw + lam w'Mu; returns (g_w + lam g0) / (1 + lam)."""
    tasks = jacobian.shape[0]
    gram = (jacobian @ jacobian.T).numpy()
    scale = np.trace(gram) / tasks
    uniform = np.full(tasks, 1.0 / tasks)
    matrix = gram / scale + 1e-13 * np.eye(tasks)
    constraints = np.concatenate([np.ones((1, tasks)), np.eye(tasks)]).T
    bounds = np.concatenate([[1.0], np.zeros(tasks)])
    w = quadprog.solve_qp(matrix, -lam * gram @ uniform / scale, constraints, bounds, meq=1)[0]
    return torch.from_numpy(w + lam * uniform) @ jacobian / (1.0 + lam)


def surgery(jacobian: Tensor, order: Tensor) -> Tensor:
    """PCGrad's algorithm 1 on the gradients themselves, task t meeting the others in order[t]; the mean."""
    projected = []
    for task, sequence in enumerate(order.tolist()):
        running = jacobian[task].clone()
        for other in sequence:
            product = running @ jacobian[other]
            if product < 0.0:
                running -= product / (jacobian[other] @ jacobian[other]) * jacobian[other]
        projected.append(running)
    return torch.stack(projected).mean(dim=0)
