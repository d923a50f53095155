from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from tests.helpers.matrices import jacobian

SCALES = ("min", "median", "rmse")


@pytest.mark.parametrize("family", ["iid", "common", "conflicting", "deficient"])
@pytest.mark.parametrize("scale", SCALES)
def test_the_direction_is_the_mean_of_orthogonal_rows_of_the_stated_length(family: str, scale: str) -> None:
    for tasks in (5, 8):
        rows = jacobian(family, tasks, seed=tasks)
        left, values, right = torch.linalg.svd(rows, full_matrices=False)
        kept = values > 1e-7 * values[0]
        left, values, right = left[:, kept], values[kept], right[kept]
        length = {
            "min": values[-1],
            "median": values[len(values) // 2],
            "rmse": values.square().mean().sqrt(),
        }
        result = make_combiner("aligned_mtl", num_tasks=tasks, scale=scale).combine(rows)
        torch.testing.assert_close(result, length[scale] * (left @ right).mean(dim=0), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_the_library_of_another_group_agrees(scale: str) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed in range(3):
        rows = jacobian("iid", 6, seed)
        result = make_combiner("aligned_mtl", num_tasks=6, scale=scale).combine(rows)
        expected = aggregation.AlignedMTL(scale_mode=scale)(rows)
        torch.testing.assert_close(result, expected, rtol=1e-8, atol=1e-9)


def test_no_operation_reads_a_number_back_to_the_host() -> None:
    # But for the eigenvalue routine's own check on CUDA, which a meta tensor does not have.
    combiner = make_combiner("aligned_mtl", num_tasks=4).to("meta")
    with combiner.unchecked():
        assert combiner.combine(torch.empty(4, 7, device="meta")).shape == (7,)


def test_a_gradient_that_is_not_finite_makes_the_direction_not_finite() -> None:
    rows = jacobian("iid", 4, seed=1)
    rows[1, 2] = torch.nan
    combiner = make_combiner("aligned_mtl", num_tasks=4)
    with combiner.unchecked():
        assert combiner.combine(rows).isnan().any()
