from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from tests.helpers.gramian_methods import projected_on_cone
from tests.helpers.matrices import FAMILIES, jacobian


@pytest.mark.parametrize("tasks", [3, 10, 50])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_all_programs_are_solved(family: str, tasks: int) -> None:
    for seed in range(10):
        combiner = make_combiner("upgrad", num_tasks=tasks)
        rows = jacobian(family, tasks, seed)
        result = combiner.combine(rows)
        norms = rows.norm(dim=1)
        assert (rows @ result >= -1e-7 * norms * norms.mean()).all()
        assert combiner.metrics()["residual"] < 1e-6


def test_fifty_dependent_gradients_are_projected_exactly() -> None:
    rows = jacobian("deficient", 50, seed=1)
    result = make_combiner("upgrad", num_tasks=50).combine(rows)
    assert (result - projected_on_cone(rows)).norm() <= 1e-6 * rows.norm(dim=1).mean()


def test_gradients_without_conflict_give_the_mean() -> None:
    rows = jacobian("iid", 6, seed=4).abs()
    torch.testing.assert_close(make_combiner("upgrad", num_tasks=6).combine(rows), rows.mean(dim=0))


def test_two_tasks_in_conflict_lose_what_harms_the_other() -> None:
    first = torch.tensor([2.0, 0.0], dtype=torch.float64)
    second = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    # The projections on the planes normal to the other: (1, 1) and (0, 1).
    expected = torch.tensor([0.5, 1.0], dtype=torch.float64)
    result = make_combiner("upgrad", num_tasks=2).combine(torch.stack((first, second)))
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_the_direction_is_linear_in_the_lengths_of_the_gradients() -> None:
    rows = jacobian("conflicting", 5, seed=6)
    lengths = torch.tensor([[1.0, 2.0, 3e-3, 50.0, 0.7], [4.0, 1e3, 0.1, 0.2, 5.0]], dtype=torch.float64)
    first, second, both = (
        make_combiner("upgrad", num_tasks=5).combine(rows * length.unsqueeze(-1))
        for length in (lengths[0], lengths[1], lengths.sum(dim=0))
    )
    torch.testing.assert_close(first + second, both, rtol=1e-9, atol=1e-9)


def test_the_library_of_another_group_agrees() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    linalg = pytest.importorskip("torchjd.linalg")
    other = aggregation.UPGrad(projector=linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-12))
    for seed in range(3):
        rows = jacobian("iid", 10, seed)
        result = make_combiner("upgrad", num_tasks=10).combine(rows)
        torch.testing.assert_close(result, other(rows), rtol=1e-6, atol=1e-6)
