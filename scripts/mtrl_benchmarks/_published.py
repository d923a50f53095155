"""The solvers of the methods' first publications, written from the papers' description; on the host."""

import warnings

import numpy as np
import torch
from torch import Tensor


def cagrad_by_slsqp(gram: Tensor, c: float) -> Tensor:
    """CAGrad's weights [T], not rescaled, for a Gramian [T, T]: the dual by scipy's SLSQP from the centre.

    Liu et al., NeurIPS 2021 (arXiv:2110.14048), the solver of the supervised experiments: numerical gradients
    and 1e-8 under the roots.
    """
    from scipy.optimize import minimize

    matrix = gram.double().cpu().numpy()
    tasks = len(matrix)
    linear = matrix.mean(axis=0)
    radius = c * np.sqrt(linear.mean() + 1e-8)

    def dual(w: np.ndarray) -> float:
        return float(linear @ w + radius * np.sqrt(w @ matrix @ w + 1e-8))

    uniform = np.full(tasks, 1.0 / tasks)
    on_simplex = {"type": "eq", "fun": lambda w: 1.0 - w.sum()}
    w = minimize(dual, uniform, method="SLSQP", bounds=[(0.0, 1.0)] * tasks, constraints=on_simplex).x
    pull = radius / (np.sqrt(w @ matrix @ w + 1e-8) + 1e-8)
    return torch.from_numpy(uniform + pull * w)


class NashByLinearisation:
    """Nash-MTL's weights by linearising the concave part of a convex-concave program, up to 20 times.

    Navon et al., ICML 2022 (arXiv:2202.01017), section 3.2: minimise sum_i (Ma)_i + phi_i(a) subject to
    phi_i(a) >= 0, phi_i(a) = log a_i + log (Ma)_i, where the phi_i of the objective are linearised at the
    last iterate; solved by cvxpy and ECOS. The iterate is kept from call to call.
    """

    def __init__(self, tasks: int) -> None:
        self._last = np.ones(tasks)

    def __call__(self, gram: Tensor) -> Tensor:
        """Return a [T], not clipped, for a Gramian [T, T]; the last iterate where the solver fails."""
        import cvxpy as cp

        matrix = gram.double().cpu().numpy()
        scale = np.linalg.norm(matrix)
        matrix = matrix / scale
        for _ in range(20):
            before = self._last
            variable = cp.Variable(len(before), nonneg=True)
            product = matrix @ variable
            slope = 1.0 / before + matrix @ (1.0 / (matrix @ before))
            objective = cp.sum(product) + (slope / scale) @ variable
            problem = cp.Problem(cp.Minimize(objective), [cp.log(scale * variable) + cp.log(product) >= 0.0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of inaccurate solutions, which the method accepts
                try:
                    problem.solve(solver=cp.ECOS, max_iters=100)
                except (cp.SolverError, ValueError):
                    break
            if variable.value is None or not (variable.value > 0.0).all():
                break
            self._last = variable.value
            if np.linalg.norm(self._last - before) < 1e-6:
                break
        return torch.from_numpy(self._last)
