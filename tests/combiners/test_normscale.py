"""NormScale: running means of the gradients' norms, renewed once in several updates."""

from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from mtrl.combiners.normscale import NormScale
from tests.helpers.matrices import jacobian


@pytest.mark.dear
def test_smoothed_norms_are_not_biased_by_a_batchs_own_noise() -> None:
    """Noisy rows: mean gradients over mean norms, which no norm of the day gives."""
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    scaled = NormScale(num_tasks=2, decay=0.999, refresh_every=1)
    daily = make_combiner("ngdiff", num_tasks=2)
    sums, norms = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2).double()
    directions, unit = [], []
    for _ in range(2500):
        # Task 1's gradient is long when it points to -x: a norm of the day mistakes that for less of it.
        long = torch.rand(1, generator=generator).item() < 0.5
        rows = true.clone()
        rows[1] = torch.tensor([3.0, 0.0] if long else [-1.0, 0.0], dtype=torch.float64)
        sums += rows
        norms += rows.norm(dim=1)
        directions.append(scaled.combine(rows))
        unit.append(daily.combine(rows) / rows.norm(dim=1).mean())
    mean_rows, mean_norms = sums / 2500, norms / 2500
    expected = (mean_rows / mean_norms.unsqueeze(1)).sum(0) / (1.0 / mean_norms).sum()
    torch.testing.assert_close(torch.stack(directions)[500:].mean(0), expected, rtol=0.1, atol=0.05)
    assert abs(float(torch.stack(unit).mean(0)[0]) - 0.5) < 0.05  # task 1 pulls nowhere: only task 0's 1 / 2


def test_rows_scales_do_not_matter_after_a_refresh() -> None:
    rows, factors = jacobian("iid", 3, seed=2), torch.tensor([1.0, 10.0, 0.01], dtype=torch.float64)
    plain, scaled = (NormScale(num_tasks=3, refresh_every=1) for _ in range(2))
    first, second = plain.combine(rows), scaled.combine(rows * factors.unsqueeze(1))
    torch.testing.assert_close(first / first.norm(), second / second.norm())
    torch.testing.assert_close(scaled.metrics()["gradient_norms"], factors * rows.norm(dim=1))


def test_a_task_without_a_gradient_at_a_refresh_weighs_nothing_and_keeps_its_norm() -> None:
    rows, combiner = jacobian("spread_2", 3, seed=3), NormScale(num_tasks=3, refresh_every=1)
    inverse = 1.0 / rows.norm(dim=1)
    absent = rows * torch.tensor([[1.0], [1.0], [0.0]])
    of_two = torch.cat((inverse[:2] / inverse[:2].sum(), torch.zeros(1)))
    expected = {False: inverse / inverse.sum(), True: of_two}
    for missing in (True,) * 30 + (False,) + (True,) * 300 + (False,):
        combiner.combine(absent if missing else rows)
        torch.testing.assert_close(combiner.last_weights, expected[missing])
    torch.testing.assert_close(combiner.metrics()["gradient_norms"], rows.norm(dim=1))
