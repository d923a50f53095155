"""Optimal values of max-min problems from a conic solver, on the primal, unlike the combiners' duals."""

import warnings
from typing import Any

import numpy as np
from torch import Tensor

_TOLERANCES = (1e-9, 1e-8, 1e-7)  # a few narrow problems end "inaccurate" at the first and well at the next


def best_worst_improvement_in_ball(jacobian: Tensor, c: float) -> float:
    """CAGrad's primal: max_d min_i <g_i, d> subject to |d - g0| <= c |g0|.

    Raises:
        ArithmeticError: the solver gave up; so do the functions below.
    """
    rows = _row_space(jacobian)
    mean = rows.mean(axis=0)
    # In units of |g0| and with rows of unit length: the solver's tolerances are absolute.
    length = float(np.linalg.norm(mean))
    return length * _best(rows, lambda cp, direction: [cp.norm(direction - mean / length) <= c])


def best_worst_improvement_in_cap(jacobian: Tensor, c: float) -> float:
    """ConicGrad's primal: max_d min_i <g_i, d> subject to |d| <= 1 and <g0, d> >= c |g0|."""
    rows = _row_space(jacobian)
    mean = rows.mean(axis=0)
    axis = mean / np.linalg.norm(mean)
    return _best(rows, lambda cp, direction: [cp.norm(direction) <= 1.0, axis @ direction >= c])


def _row_space(jacobian: Tensor) -> np.ndarray:
    """Rows of the Jacobian in an orthonormal basis of their span: all the problems live there."""
    return np.linalg.qr(jacobian.numpy().T)[1].T


def _best(rows: np.ndarray, constraints: Any) -> float:
    import cvxpy as cp  # here, because tests of a GPU import this file and may lack it

    norms = np.linalg.norm(rows, axis=1)
    there = norms > 0.0  # no direction improves a task without a gradient
    rows, norms = rows[there], norms[there]
    smallest = float(norms.min())
    direction, worst = cp.Variable(rows.shape[1]), cp.Variable()
    improvements = (rows / norms[:, None]) @ direction >= worst * (smallest / norms)
    problem = cp.Problem(cp.Maximize(worst), [improvements, *constraints(cp, direction)])
    for tolerance in _TOLERANCES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an inaccurate solution: the status says it
            problem.solve(
                solver=cp.CLARABEL, tol_gap_abs=tolerance, tol_gap_rel=tolerance, tol_feas=tolerance
            )
        if problem.status == "optimal":
            break
    else:
        raise ArithmeticError(f"the conic solver ended with status {problem.status!r}.")
    return float(problem.value) * smallest
