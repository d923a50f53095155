from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from mtrl.combiners.solvers.hull import shortest_in_hull
from tests.helpers.matrices import FAMILIES, jacobian
from tests.helpers.properties import assert_direction_oriented


@pytest.mark.parametrize("tasks", [10, 50])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("lam", [0.0, 0.6])
def test_the_optimality_conditions_hold(family: str, tasks: int, lam: float) -> None:
    for seed in range(20):
        rows = jacobian(family, tasks, seed)
        rows = rows + lam * rows.mean(dim=0)
        gram = rows @ rows.T
        w = shortest_in_hull(gram, eps=2e-16)
        slope = gram @ w
        assert (w >= 0.0).all()
        assert w.sum().item() == pytest.approx(1.0, abs=1e-12)
        assert (w @ slope - slope.min()).item() <= 1e-8 * gram.diagonal().mean().item()


@pytest.mark.parametrize("lam", [0.0, 0.1, 3.0])
def test_other_weights_of_the_mean_are_solved_too(lam: float) -> None:
    rows = jacobian("conflicting", 7, seed=1)
    assert_direction_oriented(rows, make_combiner("sdmgrad", num_tasks=7, lam=lam).combine(rows), lam=lam)


def test_a_dominant_mean_gives_the_mean() -> None:
    rows = jacobian("iid", 7, seed=2)
    result = make_combiner("sdmgrad", num_tasks=7, lam=1e8).combine(rows)
    torch.testing.assert_close(result, rows.mean(dim=0), rtol=1e-6, atol=1e-6)


def test_the_direction_is_no_longer_than_the_mean() -> None:
    for family in FAMILIES:
        rows = jacobian(family, 7, seed=3)
        result = make_combiner("sdmgrad", num_tasks=7).combine(rows)
        assert result.norm() <= rows.mean(dim=0).norm() * (1.0 + 1e-9)


def test_without_the_mean_every_task_improves_by_the_squared_norm() -> None:
    rows = jacobian("iid", 7, seed=4)
    shortest = make_combiner("sdmgrad", num_tasks=7, lam=0.0).combine(rows)
    assert (rows @ shortest >= shortest.square().sum() * (1.0 - 1e-9)).all()


@pytest.mark.parametrize("name", ["mgda", "sdmgrad"])
def test_a_task_without_a_gradient_leaves_no_gap_in_the_min_norm_problem(name: str) -> None:
    rows = jacobian("iid", 4, seed=5)
    rows[1] = 0.0
    combiner = make_combiner(name, num_tasks=4, **({"lam": 0.0} if name == "sdmgrad" else {}))
    assert combiner.combine(rows).norm() > 0.1
    assert combiner.metrics()["residual"].abs() < 1e-9
