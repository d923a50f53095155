from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from tests.helpers.matrices import jacobian
from tests.helpers.properties import assert_best_in_cap


@pytest.mark.parametrize("c", [0.0, 0.2, 0.9, 0.99])
@pytest.mark.parametrize("family", ["iid", "conflicting", "spread_2"])
def test_other_cones_are_solved_too(c: float, family: str) -> None:
    rows = jacobian(family, 6, seed=1)
    assert_best_in_cap(rows, make_combiner("conicgrad", num_tasks=6, c=c).combine(rows), c=c)


def test_the_narrowest_cone_is_the_mean() -> None:
    rows = jacobian("iid", 5, seed=0)
    torch.testing.assert_close(make_combiner("conicgrad", num_tasks=5, c=1.0).combine(rows), rows.mean(dim=0))


def test_a_binding_cone_is_met_exactly() -> None:
    rows = jacobian("spread_2", 6, seed=2)
    mean = rows.mean(dim=0)
    result = make_combiner("conicgrad", num_tasks=6, c=0.9).combine(rows)
    assert torch.nn.functional.cosine_similarity(result, mean, dim=0).item() == pytest.approx(0.9, abs=1e-7)


def test_where_the_cone_does_not_bind_it_is_the_min_norm_direction() -> None:
    rows = jacobian("iid", 6, seed=3)
    shortest = make_combiner("sdmgrad", num_tasks=6, lam=0.0).combine(rows)
    mean = rows.mean(dim=0)
    assert torch.nn.functional.cosine_similarity(shortest, mean, dim=0) > 0.1
    result = make_combiner("conicgrad", num_tasks=6, c=0.1).combine(rows)
    torch.testing.assert_close(result, shortest * (mean.norm() / shortest.norm()), rtol=1e-7, atol=1e-8)


def test_at_the_matching_cone_its_worst_improvement_is_at_least_that_of_cagrad() -> None:
    rows, radius = jacobian("conflicting", 6, seed=4), 0.6
    ball = make_combiner("cagrad", num_tasks=6, c=radius).combine(rows)
    cone = make_combiner("conicgrad", num_tasks=6, c=(1.0 - radius**2) ** 0.5).combine(rows)
    assert (rows @ cone).min() / cone.norm() >= (rows @ ball).min() / ball.norm() - 1e-9


def test_parameters_where_no_direction_helps_get_the_mean() -> None:
    rows = torch.tensor([[2.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    result = make_combiner("conicgrad", num_tasks=2).combine(rows)
    torch.testing.assert_close(result, rows.mean(dim=0), rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cone_is_kept_even_where_no_direction_improves_all_tasks(dtype: torch.dtype) -> None:
    tolerance = 1e-6 if dtype == torch.float64 else 1e-3  # gradients depend on each other up to rounding
    for seed in range(60):
        rows = jacobian("deficient", 10, seed).to(dtype)
        mean = rows.mean(dim=0)
        result = make_combiner("conicgrad", num_tasks=10).combine(rows)
        assert torch.nn.functional.cosine_similarity(result, mean, dim=0) >= 0.5 - tolerance
        assert result.norm().item() == pytest.approx(mean.norm().item(), rel=10.0 * tolerance)
