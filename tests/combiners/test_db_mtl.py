from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from mtrl.combiners.db_mtl import DBMTL
from tests.helpers.matrices import jacobian


@pytest.mark.parametrize(("beta", "sigma"), [(0.9, 0.0), (0.9, 0.5), (0.0, 0.0), (1.0, 1.0)])
def test_averages_and_lengths_follow_the_algorithm(beta: float, sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    combiner = DBMTL(num_tasks=3, beta=beta, sigma=sigma)
    averages = [torch.zeros(12, dtype=torch.float64) for _ in range(3)]
    for update in range(1, 12):
        rows = jacobian("spread_2", 3, seed=update)
        losses = torch.rand(3, generator=generator, dtype=torch.float64) + 0.05
        keep = beta / update**sigma
        for task in range(3):
            averages[task] = keep * averages[task] + (1.0 - keep) * rows[task] / losses[task]
        longest = max(average.norm() for average in averages)
        expected = sum(average / average.norm() * longest for average in averages if average.any())
        torch.testing.assert_close(combiner.combine(rows, losses), expected + torch.zeros(12).double())


def test_units_of_a_loss_do_not_matter() -> None:
    units = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    plain, scaled = DBMTL(num_tasks=3), DBMTL(num_tasks=3)
    losses = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    for seed in range(3):
        rows = jacobian("iid", 3, seed)
        expected = plain.combine(rows, losses)
        torch.testing.assert_close(scaled.combine(rows * units.unsqueeze(-1), losses * units), expected)


@pytest.mark.parametrize(("name", "still", "slow"), [("db_mtl", 1.0, 1.0 - 1e-5), ("moco", 0.0, 1e-6)])
def test_running_means_that_would_never_move_are_refused(name: str, still: float, slow: float) -> None:
    with pytest.raises(ValueError, match=r"beta must be a finite number in \["):
        make_combiner(name, num_tasks=2, beta=still)
    combiner = make_combiner(name, num_tasks=2, beta=slow)
    rows = jacobian("iid", 2, seed=0).float()
    assert combiner.combine(rows, torch.ones(2)).norm() > 1e-7 * rows.norm()


@pytest.mark.dear
def test_a_task_whose_gradient_stays_zero_fades_out_and_stops_no_update() -> None:
    rows = jacobian("iid", 2, seed=0).float()
    combiner, losses = DBMTL(num_tasks=2), torch.ones(2)
    for _ in range(5):
        combiner.combine(rows, losses)
    rows[1] = 0.0
    for _ in range(150):
        direction = combiner.combine(rows, losses)
    # Its average has 0.9^150 = 1e-7 of its length and is stretched to the other's, as in algorithm 1.
    assert float((direction - rows[0]).norm() / rows[0].norm()) == pytest.approx(1.0, rel=0.01)
    for _ in range(850):
        direction = combiner.combine(rows, losses)
    torch.testing.assert_close(direction, rows[0])
