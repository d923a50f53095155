from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from tests.helpers.gramian_methods import assert_best_steered
from tests.helpers.matrices import FAMILIES, jacobian


def direction(rows: Tensor, c: float, rescale: int = 0) -> Tensor:
    return make_combiner("imgrad", num_tasks=len(rows), c=c, rescale=rescale).combine(rows)


@pytest.mark.parametrize("c", [0.1, 0.9, 2.0])
def test_other_radii_are_solved_too(c: float) -> None:
    for family in ("conflicting", "spread_2"):
        rows = jacobian(family, 6, seed=1)
        assert_best_steered(rows, direction(rows, c), c=c)


def test_without_a_ball_it_is_the_mean() -> None:
    rows = jacobian("iid", 5, seed=0)
    torch.testing.assert_close(direction(rows, c=0.0), rows.mean(dim=0))


def test_the_direction_lies_on_the_sphere_around_the_mean() -> None:
    rows = jacobian("iid", 6, seed=2)
    mean = rows.mean(dim=0)
    torch.testing.assert_close((direction(rows, c=0.5) - mean).norm(), 0.5 * mean.norm())


@pytest.mark.parametrize(("rescale", "divisor"), [(1, 1.25), (2, 1.5)])
def test_rescaling_divides_the_direction(rescale: int, divisor: float) -> None:
    rows = jacobian("iid", 6, seed=3)
    torch.testing.assert_close(direction(rows, 0.5, rescale), direction(rows, 0.5) / divisor)


def test_it_pulls_where_cagrad_with_the_ball_that_rho_implies_pulls() -> None:
    first = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for height in torch.linspace(0.05, 0.95, 19, dtype=torch.float64):
        second = torch.stack((-height, (1.0 - height.square()).sqrt(), torch.zeros_like(height)))
        rows = torch.stack((first, 2.0 * second))
        combiner = make_combiner("imgrad", num_tasks=2, c=0.8, rescale=0)
        result = combiner.combine(rows)
        rho = combiner.metrics()["rho"].item()
        mean = rows.mean(dim=0)
        radius = 0.8 * rho / (1.5 - rho)
        other = make_combiner("cagrad", num_tasks=2, c=radius, rescale=0).combine(rows) - mean
        torch.testing.assert_close((result - mean) / 0.8, other / radius, rtol=1e-5, atol=1e-6)


def test_rho_is_the_cosine_of_the_mean_and_the_shortest_direction() -> None:
    for family in FAMILIES:
        if family == "deficient":
            continue
        rows = jacobian(family, 6, seed=4)
        shortest = make_combiner("mgda", num_tasks=6).combine(rows)
        combiner = make_combiner("imgrad", num_tasks=6)
        combiner.combine(rows)
        expected = torch.nn.functional.cosine_similarity(rows.mean(dim=0), shortest, dim=0, eps=0.0)
        torch.testing.assert_close(combiner.metrics()["rho"], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("tasks", [10, 50])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_duality_gap_closes(family: str, tasks: int) -> None:
    for seed in range(10):
        combiner = make_combiner("imgrad", num_tasks=tasks)
        combiner.combine(jacobian(family, tasks, seed))
        assert combiner.metrics()["residual"].abs() < 1e-6
