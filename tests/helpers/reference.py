"""Independent solvers of the methods' problems: a conic solver, an active-set QP solver, plain loops."""

from __future__ import annotations

import numpy as np
import quadprog
import torch
from mtrl_benchmarks._conic import best_worst_improvement_in_ball, best_worst_improvement_in_cap
from torch import Tensor

__all__ = ["best_worst_improvement_in_ball", "best_worst_improvement_in_cap", "direction_oriented", "surgery"]


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
