from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from mtrl.combiners.solvers.bargaining import bargaining_weights
from tests.helpers.gramian_methods import assert_fair
from tests.helpers.matrices import FAMILIES, jacobian

RIDGE = 16 * torch.finfo(torch.float64).eps
SOLVABLE = [name for name in FAMILIES if name != "deficient"]


def violation(gram: Tensor, weights: Tensor, alpha: float) -> float:
    return (weights.pow(1.0 / alpha) * (gram @ weights) - 1.0).abs().max().item()


@pytest.mark.parametrize("tasks", [2, 10, 50])
@pytest.mark.parametrize("family", SOLVABLE)
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_weights_solve_the_fixed_point(family: str, tasks: int, alpha: float) -> None:
    for seed in range(20):
        rows = jacobian(family, tasks, seed)
        gram = rows @ rows.T
        weights = bargaining_weights(gram, ridge=RIDGE, alpha=alpha)
        assert (weights > 0.0).all()
        assert violation(gram, weights, alpha) < 1e-6


@pytest.mark.parametrize("tasks", [10, 50])
@pytest.mark.parametrize("family", SOLVABLE)
@pytest.mark.parametrize("alpha", [3.0, 5.0])
def test_a_fairer_choice_is_solved_too(family: str, tasks: int, alpha: float) -> None:
    for seed in range(10):
        rows = jacobian(family, tasks, seed)
        gram = rows @ rows.T
        assert violation(gram, bargaining_weights(gram, ridge=RIDGE, alpha=alpha), alpha) < 1e-4


def test_the_log_barrier_is_the_bargain_of_nash() -> None:
    for family in SOLVABLE:
        rows = jacobian(family, 7, seed=1)
        fair = make_combiner("fairgrad", num_tasks=7, alpha=1.0).combine(rows)
        nash = make_combiner("nash_mtl", num_tasks=7, max_norm=0.0).combine(rows)
        torch.testing.assert_close(fair, nash, rtol=1e-9, atol=1e-9)
        assert fair.norm().item() == pytest.approx(7.0**0.5, rel=1e-6)


def test_a_root_finder_on_the_logarithms_agrees() -> None:
    rows = jacobian("iid", 6, seed=2)
    gram = (rows @ rows.T).numpy()

    def miss(logs: np.ndarray) -> np.ndarray:
        products: np.ndarray = gram @ np.exp(logs)
        return products - np.exp(-0.5 * logs)

    start = np.log(np.full(6, np.trace(gram) / 6)) * (-2.0 / 3.0)
    found = scipy.optimize.least_squares(miss, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    expected = torch.from_numpy(np.exp(found.x)) @ rows
    result = make_combiner("fairgrad", num_tasks=6).combine(rows)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.5, 1.5, 5.0])
def test_a_single_task_has_the_closed_form(alpha: float) -> None:
    row = 3.0 * torch.ones(1, 4, dtype=torch.float64)  # of norm 6
    result = make_combiner("fairgrad", num_tasks=1, alpha=alpha).combine(row)
    torch.testing.assert_close(result, 36.0 ** (-alpha / (1.0 + alpha)) * row[0], rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_other_degrees_of_fairness_are_solved_by_the_method_itself(alpha: float) -> None:
    rows = jacobian("conflicting", 8, seed=3)
    assert_fair(rows, make_combiner("fairgrad", num_tasks=8, alpha=alpha).combine(rows), alpha=alpha)


def test_the_worst_served_task_is_served_better_the_fairer() -> None:
    rows = jacobian("spread_2", 8, seed=4)
    worst = []
    for alpha in (0.5, 1.0, 2.0, 5.0):
        result = make_combiner("fairgrad", num_tasks=8, alpha=alpha).combine(rows)
        worst.append(((rows @ result).min() / result.norm()).item())
    assert worst == sorted(worst)


def published(rows: Tensor, alpha: float) -> Tensor:
    """The inner loop of the authors' RL code as its paper repository describes it, on autograd and SGD."""
    gram = rows @ rows.T
    weights = torch.full((len(rows),), 1.0 / len(rows), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.5)
    points = []
    for _ in range(20):
        optimizer.zero_grad()
        miss = (gram @ weights - (1.0 / (weights + 1e-8)) ** (1.0 / alpha)).square().sum()
        points.append((miss.item(), weights.detach().clone()))
        miss.backward()
        torch.nn.utils.clip_grad_norm_([weights], 1.0)
        optimizer.step()
        with torch.no_grad():
            weights.clamp_(min=1e-8)
    return min(points, key=lambda point: point[0])[1]


@pytest.mark.parametrize("family", ["iid", "common", "spread_2"])
@pytest.mark.parametrize("scale", [1e-2, 1.0])
def test_the_published_inner_loop_is_followed_step_by_step(family: str, scale: float) -> None:
    for alpha in (1.0, 2.0):
        rows = scale * jacobian(family, 10, seed=5)
        combiner = make_combiner("fairgrad", num_tasks=10, alpha=alpha, solver="paper")
        result = combiner.combine(rows)
        expected = published(rows, alpha) @ rows
        assert (result - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("options", [{"alpha": 0.1}, {"alpha": 20.0}, {"solver": "exakt"}])
def test_values_outside_the_rules_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"alpha must be|solver must be"):
        make_combiner("fairgrad", num_tasks=3, **options)
