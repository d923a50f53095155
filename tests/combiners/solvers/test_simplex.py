from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.combiners.solvers.simplex import minimise_root
from tests.helpers.matrices import FAMILIES, jacobian


def duality_gap(rows: Tensor, c: float, w: Tensor) -> float:
    """CAGrad's dual value at w minus the worst improvement of its direction, relative to the former."""
    mean = rows.mean(dim=0)
    radius = c * mean.norm()
    mixed = w @ rows
    value = mixed @ mean + radius * mixed.norm()
    worst = (rows @ (mean + radius * mixed / mixed.norm())).min()
    gap = (value - worst) / torch.maximum(value.abs(), 1e-3 * radius * rows.norm(dim=1).min())
    return float(gap)


def solved(rows: Tensor, c: float) -> Tensor:
    gram = rows @ rows.T
    products = gram.mean(dim=-1)
    return minimise_root(gram, products / (c * products.mean().sqrt()))


def check(family: str, tasks: int, c: float, seeds: range) -> None:
    gaps = []
    for seed in seeds:
        rows = jacobian(family, tasks, seed)
        w = solved(rows, c)
        assert (w >= 0.0).all()
        assert w.sum().item() == pytest.approx(1.0, abs=1e-12)
        gaps.append(duality_gap(rows, c, w))
    assert max(gaps) < 1e-6


@pytest.mark.parametrize("tasks", [10, 50])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "deficient"])
@pytest.mark.parametrize("c", [0.5, 0.9])
def test_the_dual_of_cagrad_is_solved_to_a_certified_gap(family: str, tasks: int, c: float) -> None:
    check(family, tasks, c, range(20))


def test_zero_rows_get_no_weight_and_do_not_disturb_the_others() -> None:
    rows = jacobian("iid", 6, seed=1)
    gram = rows @ rows.T
    linear = gram.mean(dim=-1)
    padded = torch.zeros(8, 8, dtype=torch.float64)
    padded[:6, :6] = gram
    w = minimise_root(padded, torch.cat((linear, torch.zeros(2, dtype=torch.float64))))
    assert (w[6:] == 0.0).all()
    torch.testing.assert_close(w[:6], minimise_root(gram, linear), rtol=0.0, atol=1e-9)


def test_a_batch_of_problems_is_solved_as_one_by_one() -> None:
    rows = torch.stack([jacobian("iid", 5, seed) for seed in range(4)])
    grams = rows @ rows.mT
    linear = grams.mean(dim=-1)
    batched = torch.vmap(minimise_root)(grams, linear)
    single = torch.stack([minimise_root(gram, q) for gram, q in zip(grams, linear, strict=True)])
    torch.testing.assert_close(batched, single, rtol=0.0, atol=1e-9)
