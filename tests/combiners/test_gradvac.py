from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from mtrl.combiners.gradvac import GradVac
from mtrl.combiners.pcgrad import PCGrad
from mtrl.combiners.solvers import surgery
from tests.helpers.gramian_methods import turned
from tests.helpers.matrices import jacobian


def test_the_first_update_is_that_of_pcgrad() -> None:
    rows = jacobian("conflicting", 6, seed=1)
    first = make_combiner("gradvac", num_tasks=6).combine(rows)
    torch.testing.assert_close(first, make_combiner("pcgrad", num_tasks=6).combine(rows))


@pytest.mark.parametrize("family", ["iid", "common", "conflicting", "spread_2"])
@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_updates_follow_the_algorithm_on_gradients(family: str, beta: float) -> None:
    combiner, orders = GradVac(num_tasks=5, beta=beta), PCGrad(num_tasks=5)
    targets = torch.zeros(5, 5, dtype=torch.float64)
    for seed in range(8):
        rows = jacobian(family, 5, seed)
        expected, targets = turned(rows, orders.draw_orders(), targets, beta)
        torch.testing.assert_close(combiner.combine(rows), expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(combiner.targets, targets, rtol=1e-9, atol=1e-12)


def test_a_turned_gradient_meets_its_target() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.5], [-0.4, 2.0, 0.3]], dtype=torch.float64)
    combiner = GradVac(num_tasks=2, beta=0.0)
    combiner.targets.fill_(0.6)
    order = torch.tensor([[1], [0]])
    mean, _ = turned(rows, order, combiner.targets, beta=0.0)
    result = combiner.combine(rows)
    torch.testing.assert_close(result, mean, rtol=1e-9, atol=1e-12)
    weights = torch.linalg.lstsq(rows.T, result.unsqueeze(-1)).solution.squeeze(-1) * 2.0 - 1.0
    for task, other in ((0, 1), (1, 0)):
        moved = rows[task] + weights[other] * rows[other]
        cosine = torch.nn.functional.cosine_similarity(moved, rows[other], dim=0)
        assert cosine.item() == pytest.approx(0.6, abs=1e-9)


def test_pairs_without_a_cosine_keep_their_target() -> None:
    rows = jacobian("iid", 3, seed=3)
    combiner = GradVac(num_tasks=3, beta=0.5)
    combiner.combine(rows)
    before = combiner.targets.clone()
    rows[1] = 0.0
    combiner.combine(rows)
    assert torch.equal(combiner.targets[1], before[1])
    assert torch.equal(combiner.targets[:, 1], before[:, 1])
    assert combiner.targets[0, 2] != before[0, 2]


@pytest.mark.parametrize("parts", [(0.3, -0.7, 1.9), (0.1, -3.0, 0.6), (5.0, -0.011, 0.2)])
def test_a_gradient_that_another_cancelled_keeps_its_targets(parts: tuple[float, ...]) -> None:
    line = torch.tensor(parts, dtype=torch.float64).unsqueeze(1) * jacobian("iid", 1, seed=7)
    rows = torch.cat((line, jacobian("iid", 2, seed=8, parameters=line.shape[1])))
    order = torch.tensor([[1, 2, 3, 4], [0, 2, 3, 4], [1, 0, 3, 4], [0, 1, 2, 4], [0, 1, 2, 3]])
    _, targets = surgery.turned(rows @ rows.T, order, torch.zeros(5, 5).double(), 0.5)
    # The first three tasks meet their opposite first, after which nothing is left of them.
    assert torch.equal(targets[:3].count_nonzero(dim=1), torch.ones(3))
    assert targets[[0, 1, 2], [1, 0, 1]].tolist() == pytest.approx([-0.5] * 3)


def test_an_update_that_is_not_finite_leaves_the_targets_alone() -> None:
    combiner = GradVac(num_tasks=3)
    combiner.combine(jacobian("iid", 3, seed=4))
    before = combiner.targets.clone()
    with combiner.unchecked():
        combiner.combine(torch.full((3, 5), torch.nan, dtype=torch.float64))
    assert torch.equal(combiner.targets, before)


def test_targets_of_gradients_that_always_agree_stay_safe() -> None:
    combiner = GradVac(num_tasks=3, beta=1.0)
    row = jacobian("iid", 1, seed=5)
    combiner.combine(row.expand(3, -1))
    conflict = jacobian("conflicting", 3, seed=6, parameters=row.shape[1])
    result = combiner.combine(conflict)
    assert result.isfinite().all()
    assert result.norm() <= 1e7 * conflict.norm()
