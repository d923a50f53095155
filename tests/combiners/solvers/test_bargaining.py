from __future__ import annotations

import pytest
import torch

from mtrl.combiners.solvers.bargaining import bargaining_weights
from tests.combiners.solvers.problems import KINDS, drawn, dtypes, gramian_of, sizes

SOLVABLE = [(name, decades) for name, decades in KINDS if name != "deficient"]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@sizes
@dtypes
@pytest.mark.parametrize(("family", "decades"), SOLVABLE, ids=str)
def test_every_task_gains_what_its_weight_says(
    family: str, decades: float, dtype: torch.dtype, tasks: int, alpha: float
) -> None:
    for seed in range(3):
        gram = gramian_of(drawn(family, decades, tasks, seed), dtype)
        ridge = 16.0 * torch.finfo(dtype).eps
        w = bargaining_weights(gram, ridge=ridge, alpha=alpha)
        assert (w > 0.0).all()
        assert float((w ** (1.0 / alpha) * (gram.double() @ w) - 1.0).abs().max()) <= 1e-5


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@dtypes
def test_weights_are_finite_where_gradients_cancel(dtype: torch.dtype, alpha: float) -> None:
    for seed in range(10):
        rows = drawn("iid", 0.0, 8, seed)
        gram = gramian_of(rows - rows.mean(dim=0), dtype)
        w = bargaining_weights(gram, ridge=16.0 * torch.finfo(dtype).eps, alpha=alpha)
        assert w.isfinite().all()
        assert (w > 0.0).all()


def test_nearly_opposite_gradients_of_single_precision_still_have_a_fair_bargain() -> None:
    angles = torch.tensor([0.0, 3.13, 2.76], dtype=torch.float64)
    rows = torch.stack((angles.cos(), angles.sin()), 1)
    gram = gramian_of(rows, torch.float32)
    w = bargaining_weights(gram, ridge=2e-6, alpha=5.0)
    assert float((w**0.2 * (gram.double() @ w) - 1.0).abs().max()) <= 1e-5
