from __future__ import annotations

import math

import pytest
import torch

from mtrl.combiners.solvers.hull import shortest_in_hull
from tests.combiners.solvers.problems import drawn, dtypes, gramian_of, kinds, sizes


@sizes
@dtypes
@kinds
def test_every_gradient_has_the_shortest_vectors_square_as_product(
    family: str, decades: float, dtype: torch.dtype, tasks: int
) -> None:
    gram = gramian_of(drawn(family, decades, tasks, seed=3), dtype)
    exact = gram.double()
    w = shortest_in_hull(gram, eps=torch.finfo(dtype).eps)
    assert (w >= 0.0).all()
    assert float(w.sum()) == pytest.approx(1.0, abs=1e-12)
    products = exact @ w
    assert float((w @ products - products.min()) / (w @ exact.diagonal())) <= 1e-5


@pytest.mark.parametrize("decades", [1, 9, 10, 12])
def test_a_short_gradient_counts_however_long_the_others_are(decades: int) -> None:
    long = 10.0**decades
    rows = torch.tensor([[1.0, 0.0], [long * math.cos(2.0), long * math.sin(2.0)]], dtype=torch.float64)
    found = shortest_in_hull(rows @ rows.T, eps=2e-16) @ rows
    across = rows[1] - rows[0]
    share = -(rows[0] @ across) / (across @ across)
    torch.testing.assert_close(found, rows[0] + share * across, rtol=1e-5, atol=1e-5)


def test_gradients_that_cancel_have_a_hull_with_zero() -> None:
    rows = torch.tensor([[3.0, 0.0], [-1.0, 1.0], [-1.0, -2.0], [5.0, 5.0]], dtype=torch.float64)
    w = shortest_in_hull(rows @ rows.T, eps=2e-16)
    torch.testing.assert_close(w @ rows, torch.zeros(2, dtype=torch.float64), rtol=0.0, atol=1e-9)


def test_zero_gradients_weigh_nothing_unless_all_are() -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    w = shortest_in_hull(rows @ rows.T, eps=2e-16)
    torch.testing.assert_close(w, torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))
    assert torch.equal(shortest_in_hull(torch.zeros(4, 4), eps=1e-7), torch.full((4,), 0.25).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_opposite_gradients_cancel_among_others(dtype: torch.dtype) -> None:
    for seed in range(20):
        rows = drawn("iid", 0.0, 7, seed)
        rows[3] = -rows[0]
        gram = gramian_of(rows, dtype)
        w = shortest_in_hull(gram, eps=torch.finfo(dtype).eps)
        assert float((w @ rows).norm() / (w @ rows.norm(dim=1))) <= torch.finfo(dtype).eps ** 0.5


def test_a_path_has_as_many_corners_as_it_needs() -> None:
    # Of rank 11, so that some positive mix of the 25 is zero; tens of tasks enter and leave before.
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(25, 11, generator=generator, dtype=torch.float64)
        rows = rows * 10.0 ** (8.0 * torch.rand(25, 1, generator=generator, dtype=torch.float64) - 4.0)
        w = shortest_in_hull(rows @ rows.T, eps=2e-16)
        products = rows @ (w @ rows) / rows.norm(dim=1) / (w @ rows.norm(dim=1))
        assert float(products.min()) >= -1e-6


def test_many_copies_of_a_gradient_take_no_turns() -> None:
    # As zero gradients are in SDMGrad: all of them lam g0 there.
    for seed in range(40):
        rows = drawn("iid", 0.0, 45, seed)[:, :3]
        rows[::2] = 0.6 * rows[1::2].mean(dim=0)
        w = shortest_in_hull(rows @ rows.T, eps=2e-16)
        products = rows @ (w @ rows)
        assert float((w @ products - products).max()) <= 1e-9
