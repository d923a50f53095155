"""Properties of a direction that follow from a method's definition, and independent solvers of its problem.

The solvers: a conic one, an active-set QP solver, plain loops.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.helpers.conic import best_worst_improvement_in_ball, best_worst_improvement_in_cap


def direction_oriented(jacobian: Tensor, lam: float) -> Tensor:
    """SDMGrad: w on the simplex minimises 1/2 w'Mw + lam w'Mu; returns (g_w + lam g0) / (1 + lam)."""
    import quadprog

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


def assert_best_in_ball(jacobian: Tensor, direction: Tensor, *, c: float) -> None:
    """The direction, not rescaled, is in CAGrad's ball and its worst improvement is the conic optimum."""
    mean = jacobian.mean(dim=0)
    radius = c * mean.norm()
    assert (direction - mean).norm() <= radius * (1.0 + 1e-9)
    value = (jacobian @ direction).min().item()
    best = best_worst_improvement_in_ball(jacobian, c)
    # Relative to the value, or (where it vanishes) to the improvement that the ball's radius can make.
    scale = max(abs(best), 1e-3 * (radius * jacobian.norm(dim=1).min()).item())
    assert value >= best - 1e-6 * scale, (value, best)


def assert_best_in_cap(jacobian: Tensor, direction: Tensor, *, c: float) -> None:
    """The direction has the mean's norm, a cosine of at least c, and the optimal worst improvement."""
    mean = jacobian.mean(dim=0)
    torch.testing.assert_close(direction.norm(), mean.norm(), rtol=1e-9, atol=0.0)
    unit = direction / mean.norm()
    assert torch.dot(unit, mean / mean.norm()) >= c - 1e-6
    value = (jacobian @ unit).min().item()
    best = best_worst_improvement_in_cap(jacobian, c)
    scale = max(abs(best), 1e-3 * jacobian.norm(dim=1).min().item())
    assert value >= best - 1e-6 * scale, (value, best)


def assert_bargaining(jacobian: Tensor, direction: Tensor) -> None:
    """The direction maximises sum_i log <g_i, d> over the unit ball: d = mean_i g_i / <g_i, d>."""
    improvements = jacobian @ direction
    assert (improvements > 0.0).all()
    torch.testing.assert_close(direction.norm(), torch.ones_like(direction[0]), rtol=1e-6, atol=0.0)
    implied = (jacobian / improvements.unsqueeze(-1)).mean(dim=0)
    torch.testing.assert_close(implied, direction, rtol=0.0, atol=1e-6)


def assert_direction_oriented(jacobian: Tensor, direction: Tensor, *, lam: float) -> None:
    """The direction is that of a quadratic-programming solver."""
    expected = direction_oriented(jacobian, lam)
    assert (direction - expected).norm() <= 1e-7 * jacobian.norm(dim=1).max()


def assert_mean(jacobian: Tensor, direction: Tensor) -> None:
    """The direction is the mean of the rows."""
    torch.testing.assert_close(direction, jacobian.sum(dim=0) / len(jacobian))


def assert_two_task_surgery(jacobian: Tensor, direction: Tensor) -> None:
    """PCGrad's closed form for two tasks."""
    first, second = jacobian
    product = torch.dot(first, second).clamp(max=0.0)
    kept_first = first - product / second.square().sum() * second
    kept_second = second - product / first.square().sum() * first
    torch.testing.assert_close(direction, (kept_first + kept_second) / 2.0)
