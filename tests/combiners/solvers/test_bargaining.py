from __future__ import annotations

import itertools

import pytest
import torch

from mtrl.combiners.solvers.bargaining import bargaining_weights
from tests.combiners.solvers.problems import KINDS, drawn, dtypes, gramian_of, sizes, symmetric

SOLVABLE = [(name, decades) for name, decades in KINDS if name != "deficient"]


@sizes
@dtypes
def test_every_task_gains_what_its_weight_says(dtype: torch.dtype, tasks: int) -> None:
    for (family, decades), seed in itertools.product(SOLVABLE, range(3)):
        gram = gramian_of(drawn(family, decades, tasks, seed), dtype)
        ridge = 16.0 * torch.finfo(dtype).eps
        for alpha in (0.5, 1.0, 2.0, 5.0):
            w = bargaining_weights(gram, ridge=ridge, alpha=alpha)
            assert (w > 0.0).all(), (family, decades, seed, alpha)
            apart = float((w ** (1.0 / alpha) * (symmetric(gram) @ w) - 1.0).abs().max())
            assert apart <= 1e-5, (family, decades, seed, alpha)


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
    assert float((w**0.2 * (symmetric(gram) @ w) - 1.0).abs().max()) <= 1e-5
