from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from tests.helpers.gramian_methods import assert_mean_unconflicted
from tests.helpers.matrices import FAMILIES, jacobian


@pytest.mark.parametrize("tasks", [3, 10, 50])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_program_is_solved(family: str, tasks: int) -> None:
    for seed in range(5):
        combiner = make_combiner("dual_proj", num_tasks=tasks)
        rows = jacobian(family, tasks, seed)
        assert_mean_unconflicted(rows, combiner.combine(rows))
        assert combiner.metrics()["residual"] < 1e-6


@pytest.mark.parametrize("family", [*FAMILIES, "near_opposite_5", "zero_row"])
def test_single_precision_solves_it_to_what_the_metric_says(family: str) -> None:
    combiner = make_combiner("dual_proj", num_tasks=50)
    combiner.combine(jacobian(family, 50, seed=0).float())
    assert combiner.metrics()["residual"] < 3e-5


def test_a_mean_that_harms_no_task_stays() -> None:
    rows = jacobian("iid", 6, seed=4).abs()
    torch.testing.assert_close(make_combiner("dual_proj", num_tasks=6).combine(rows), rows.mean(dim=0))


def test_a_task_that_the_mean_harms_is_left_as_it_is() -> None:
    # The mean (1, 1) loses what it has against the second task.
    rows = torch.tensor([[3.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) - torch.tensor([0.0, 0.5])
    expected = rows.mean(dim=0) - (rows.mean(dim=0) @ rows[1]) / rows[1].square().sum() * rows[1]
    found = make_combiner("dual_proj", num_tasks=2).combine(rows)
    torch.testing.assert_close(found, expected)
    assert abs(float(found @ rows[1])) < 1e-12
