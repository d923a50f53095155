from __future__ import annotations

import pytest
import torch

from mtrl.combiners.solvers.bargaining import bargaining_weights
from mtrl.combiners.solvers.roads import on_tensors
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
        with on_tensors():
            other = bargaining_weights(gram, ridge=ridge, alpha=alpha)
        torch.testing.assert_close(other, w, rtol=1e-5, atol=0.0)
