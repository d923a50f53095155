from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from tests.helpers.gramian_methods import assert_shortest
from tests.helpers.matrices import FAMILIES, jacobian


@pytest.mark.parametrize(("angle", "expected"), [(0.3, "shorter"), (2.0, "between")])
def test_two_tasks_follow_the_closed_form(angle: float, expected: str) -> None:
    longer = torch.tensor([3.0, 0.0], dtype=torch.float64)
    shorter = torch.tensor([angle, angle]).double().cos() * torch.tensor([1.0, 0.0]).double()
    shorter = shorter + torch.tensor([0.0, 1.0]).double() * torch.tensor(angle).double().sin()
    result = make_combiner("mgda", num_tasks=2).combine(torch.stack((longer, shorter)))
    if expected == "shorter":  # its hull's end is closest to the origin
        torch.testing.assert_close(result, shorter, rtol=1e-6, atol=1e-7)
        return
    share = (shorter @ (shorter - longer)) / (shorter - longer).square().sum()
    torch.testing.assert_close(result, share * longer + (1.0 - share) * shorter, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("tasks", [10, 50])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_optimality_conditions_hold(family: str, tasks: int) -> None:
    for seed in range(10):
        combiner = make_combiner("mgda", num_tasks=tasks)
        rows = jacobian(family, tasks, seed)
        combiner.combine(rows)
        weights = combiner.last_weights
        assert (weights >= 0.0).all()
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)
        assert combiner.metrics()["residual"].abs() < 1e-9


def test_norms_of_four_decades_are_no_obstacle() -> None:
    for seed in range(5):
        rows = jacobian("spread_2", 20, seed)
        assert_shortest(rows, make_combiner("mgda", num_tasks=20).combine(rows))


def test_a_zero_gradient_leaves_the_hull_to_the_others() -> None:
    rows = jacobian("iid", 5, seed=3)
    rows[1] = 0.0
    expected = make_combiner("mgda", num_tasks=4).combine(rows[[0, 2, 3, 4]])
    combiner = make_combiner("mgda", num_tasks=5)
    torch.testing.assert_close(combiner.combine(rows), expected)
    assert combiner.metrics()["residual"].abs() < 1e-9


@pytest.mark.dear
def test_the_library_of_another_group_agrees() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    other = aggregation.MGDA(epsilon=1e-9, max_iters=20_000)
    for seed in range(3):
        rows = jacobian("iid", 6, seed)
        result = make_combiner("mgda", num_tasks=6).combine(rows)
        torch.testing.assert_close(result, other(rows), rtol=1e-3, atol=1e-3)
