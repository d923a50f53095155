"""What the definition of each method says about special and general Jacobians, one row of the table each."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.combiners.calls import CONFLICT, NAMES, direction, methods, methods_where
from tests.combiners.oracles import ORACLES
from tests.helpers.cases import case
from tests.helpers.matrices import jacobian

TASKS = (1, 2, 3, 10)


def test_the_table_has_exactly_one_row_per_registered_method() -> None:
    assert sorted(ORACLES) == NAMES


@methods_where(lambda row: row.identical is not None)
def test_identical_rows_give_the_known_multiple_of_the_row(name: str) -> None:
    unit = jacobian("iid", 1, seed=3, parameters=7)[0]
    unit = unit / unit.norm()
    multiple = ORACLES[name].identical
    assert multiple is not None
    for tasks, norm in itertools.product(TASKS, (1e-6, 1.0, 1e4)):
        found, expected = direction(name, norm * unit.expand(tasks, -1)), multiple(tasks, norm) * norm * unit
        assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9 * norm), (tasks, norm)


@methods_where(lambda row: row.orthonormal is not None)
def test_orthonormal_rows_get_the_known_equal_weights(name: str) -> None:
    weight = ORACLES[name].orthonormal
    assert weight is not None
    for tasks in TASKS:
        rows = torch.linalg.qr(jacobian("iid", tasks, seed=1).T)[0].T
        expected = weight(tasks) * rows.sum(dim=0)
        assert torch.allclose(direction(name, rows), expected, rtol=0.0, atol=1e-7), tasks


@methods_where(lambda row: row.opposite_cancel)
def test_opposite_rows_cancel(name: str) -> None:
    power = ORACLES[name].scale_power
    for scale in (1e-8, 1.0, 1e8):
        row = scale * jacobian("iid", 1, seed=2, parameters=5)[0]
        bound = 1e-7 * (scale**power if power is not None else max(scale, 1.0))
        assert direction(name, torch.stack((row, -row))).norm() <= bound, scale


@methods
def test_zero_gradients_give_no_direction(name: str) -> None:
    for tasks in TASKS:
        assert (direction(name, torch.zeros(tasks, 4, dtype=torch.float64)) == 0.0).all(), tasks


@methods
def test_zero_rows_leave_a_descent_direction_for_the_other_tasks(name: str) -> None:
    for zeros in (1, 2):
        rows = jacobian("common", 4, seed=5)
        rows[:zeros] = 0.0
        result = direction(name, rows)
        assert result.isfinite().all(), zeros
        assert (rows[zeros:] @ result > 0.0).all(), zeros


@methods_where(lambda row: row.identical is not None)
def test_rank_one_rows_of_one_sign_give_that_direction(name: str) -> None:
    row = jacobian("iid", 1, seed=7, parameters=6)
    result = direction(name, torch.tensor([[1.0], [2.0], [30.0]], dtype=torch.float64) * row)
    cosine = torch.nn.functional.cosine_similarity(result, row[0], dim=0)
    assert cosine == pytest.approx(1.0, abs=1e-9)


@methods
def test_rank_one_rows_of_mixed_sign_give_a_finite_bounded_direction(name: str) -> None:
    row = jacobian("iid", 1, seed=7, parameters=6)
    for dtype in (torch.float32, torch.float64):
        rows = torch.tensor([[1.0], [2.0], [-3.0]], dtype=dtype) * row.to(dtype)
        result = direction(name, rows)
        assert result.isfinite().all(), dtype
        assert result.norm() <= 10.0 * max(1.0, rows.norm().item()), dtype


@methods_where(lambda row: row.scale_power is not None)
def test_scaling_all_gradients_follows_the_scale_law(name: str) -> None:
    power = ORACLES[name].scale_power
    assert power is not None
    for family in ("iid", "common", "spread_2"):
        rows = jacobian(family, 5, seed=11)
        expected = direction(name, rows)
        for scale in (1e-8, 1e-3, 1e3, 1e8):
            if scale >= ORACLES[name].scale_law_from:
                found = direction(name, rows * scale) / scale**power
                assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9), (family, scale)


@methods
def test_row_scales_matter_exactly_where_the_definition_says(name: str) -> None:
    rows = jacobian("common", 4, seed=13)
    plain = direction(name, rows)
    for decades in (3, 8):
        scaled = rows * 10.0 ** torch.linspace(-decades, decades, 4, dtype=torch.float64).unsqueeze(-1)
        result = direction(name, scaled)
        assert result.isfinite().all(), decades
        same = torch.allclose(result, plain, rtol=1e-6, atol=1e-9)
        assert same == ORACLES[name].row_scale_invariant, decades


@methods_where(lambda row: row.permutation_equivariant)
def test_the_order_of_tasks_does_not_matter(name: str) -> None:
    for family in ("iid", "conflicting", "spread_2"):
        rows = jacobian(family, 7, seed=17)
        found, expected = direction(name, rows[torch.tensor([3, 0, 6, 1, 5, 2, 4])]), direction(name, rows)
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8 * rows.norm().item()), family


@methods
def test_single_precision_gives_the_direction_of_double_precision(name: str) -> None:
    for tasks in (3, 10):
        rows = jacobian("iid", tasks, seed=23, parameters=20_000)
        single, double = direction(name, rows.float()), direction(name, rows)
        assert single.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(single.double(), double, dim=0) > 1.0 - 1e-6, tasks


@methods
def test_conflict_makes_a_difference_to_the_mean(name: str) -> None:
    result, mean = direction(name, CONFLICT), CONFLICT.mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity(result, mean, dim=0)
    assert (cosine < 0.999) == (name != "mean" and not ORACLES[name].starts_as_mean)


@methods
@given(
    tasks=st.integers(1, 12),
    parameters=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    decades=st.floats(0.0, 6.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=10, deadline=None, derandomize=True)
def test_any_finite_gradients_give_a_finite_direction(
    name: str, tasks: int, parameters: int, seed: int, decades: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, parameters, generator=generator, dtype=torch.float64)
    rows *= 10.0 ** (decades * torch.randn(tasks, 1, generator=generator, dtype=torch.float64))
    result = direction(name, rows.to(dtype))
    assert result.isfinite().all()


@methods_where(lambda row: bool(row.oracle_families))
def test_the_independent_oracle_agrees(name: str) -> None:
    for family, tasks in itertools.product(ORACLES[name].oracle_families, ORACLES[name].oracle_tasks):
        rows = jacobian(family, tasks, seed=100)
        with case(family, tasks):
            ORACLES[name].oracle(rows, direction(name, rows))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [
        (name, family)
        for name, row in ORACLES.items()
        for family in row.oracle_families
        if 10 in row.oracle_tasks
    ],
)
def test_the_independent_oracle_agrees_on_fifty_tasks(name: str, family: str) -> None:
    for seed in range(3):
        rows = jacobian(family, 50, seed=200 + seed)
        ORACLES[name].oracle(rows, direction(name, rows))
