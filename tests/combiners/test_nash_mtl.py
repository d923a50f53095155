from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from mtrl.combiners.solvers.bargaining import bargaining_weights
from tests.helpers.matrices import FAMILIES, jacobian

EPS = 16 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("tasks", [2, 10, 50])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "deficient"])
def test_weights_solve_the_fixed_point_and_the_norm_law(family: str, tasks: int) -> None:
    for seed in range(20):
        rows = jacobian(family, tasks, seed)
        a = bargaining_weights(rows @ rows.T, ridge=EPS)
        direction = a @ rows
        torch.testing.assert_close(a * (rows @ direction), torch.ones_like(a), rtol=0.0, atol=1e-6)
        assert direction.norm().item() == pytest.approx(tasks**0.5, rel=1e-6)


@pytest.mark.parametrize("tasks", [10, 50])
def test_dependent_gradients_with_a_common_descent_direction_are_solved(tasks: int) -> None:
    for seed in range(20):
        basis = jacobian("iid", tasks // 2, seed)
        mix = torch.rand(
            tasks, tasks // 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        rows = (mix + 0.2) @ torch.linalg.qr(basis.T)[0].T
        a = bargaining_weights(rows @ rows.T, ridge=EPS)
        torch.testing.assert_close(a * (rows @ (a @ rows)), torch.ones_like(a), rtol=0.0, atol=1e-6)


def test_two_tasks_get_the_sum_of_unit_gradients() -> None:
    rows = jacobian("spread_3", 2, seed=1)
    expected = (rows / rows.norm(dim=1, keepdim=True)).sum(dim=0)
    result = make_combiner("nash_mtl", num_tasks=2, max_norm=0).combine(rows)
    unit = expected / expected.norm()
    torch.testing.assert_close(result, unit * 2.0**0.5, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("max_norm", "expected"), [(1.0, 1.0), (0.3, 0.3), (5.0, 3.0), (0.0, 3.0)])
def test_only_longer_directions_are_scaled_down(max_norm: float, expected: float) -> None:
    rows = jacobian("iid", 9, seed=2)
    result = make_combiner("nash_mtl", num_tasks=9, max_norm=max_norm).combine(rows)
    assert result.norm().item() == pytest.approx(expected, rel=1e-9)


def test_a_zero_gradient_leaves_the_bargain_to_the_others() -> None:
    rows = jacobian("iid", 5, seed=3)
    rows[1] = 0.0
    others = rows[[0, 2, 3, 4]]
    result = make_combiner("nash_mtl", num_tasks=5).combine(rows)
    torch.testing.assert_close(result, make_combiner("nash_mtl", num_tasks=4).combine(others))


def test_weights_are_kept_between_refreshes() -> None:
    combiner = make_combiner("nash_mtl", num_tasks=4, refresh_every=3, max_norm=0.0)
    exact = make_combiner("nash_mtl", num_tasks=4, max_norm=0.0)
    grams = [rows @ rows.T for rows in (jacobian("iid", 4, seed) for seed in range(7))]
    for index, gram in enumerate(grams):
        combiner.combine(torch.linalg.cholesky(gram))
        exact.combine(torch.linalg.cholesky(grams[index - index % 3]))
        assert torch.equal(combiner.last_weights, exact.last_weights)


def test_refreshing_continues_in_step_after_a_restart() -> None:
    first, second = (make_combiner("nash_mtl", num_tasks=4, refresh_every=3) for _ in range(2))
    for seed in range(4):
        first.combine(jacobian("iid", 4, seed))
    second.load_state_dict(first.state_dict())
    for seed in range(4, 9):
        rows = jacobian("iid", 4, seed)
        assert torch.equal(first.combine(rows), second.combine(rows))
