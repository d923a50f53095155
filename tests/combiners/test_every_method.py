from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtrl.combiners import COMBINERS, Combiner, GramCombiner, LossCombiner, make_combiner
from tests.combiners.oracles import ORACLES
from tests.helpers.loss_methods import losses_of
from tests.helpers.matrices import jacobian

NAMES = sorted(COMBINERS)
TASKS = (1, 2, 3, 10)
CONFLICT = torch.tensor([[1.0, 0.2, 0.0], [-0.9, 0.5, 0.0], [0.1, -0.6, 1.0]], dtype=torch.float64)

methods = pytest.mark.parametrize("name", NAMES)


def direction(name: str, rows: Tensor) -> Tensor:
    return combined(ORACLES[name].make(name, len(rows)), rows)


def combined(combiner: Combiner, rows: Tensor) -> Tensor:
    return combiner.combine(rows, losses_of(rows))


def advance(combiner: Combiner, seed: int) -> Tensor:
    """One whole update on random gradients of five tasks, with the second look at the losses."""
    rows = jacobian("iid", 5, seed)
    result = combined(combiner, rows)
    combiner.after_step(losses_of(rows) * torch.linspace(0.5, 1.1, 5, dtype=torch.float64))
    return result


def test_the_table_has_exactly_one_row_per_registered_method() -> None:
    assert sorted(ORACLES) == NAMES


@methods
@pytest.mark.parametrize("tasks", TASKS)
@pytest.mark.parametrize("norm", [1e-6, 1.0, 1e4])
def test_identical_rows_give_the_known_multiple_of_the_row(name: str, tasks: int, norm: float) -> None:
    row = jacobian("iid", 1, seed=3, parameters=7)[0]
    row = row / row.norm() * norm
    multiple = ORACLES[name].identical
    if multiple is None:
        pytest.skip(ORACLES[name].coordinatewise)
    expected = multiple(tasks, norm) * row
    torch.testing.assert_close(direction(name, row.expand(tasks, -1)), expected, rtol=1e-7, atol=1e-9 * norm)


@methods
@pytest.mark.parametrize("tasks", TASKS)
def test_orthonormal_rows_get_the_known_equal_weights(name: str, tasks: int) -> None:
    rows = torch.linalg.qr(jacobian("iid", tasks, seed=1).T)[0].T
    weight = ORACLES[name].orthonormal
    if weight is None:
        pytest.skip(ORACLES[name].coordinatewise)
    expected = weight(tasks) * rows.sum(dim=0)
    torch.testing.assert_close(direction(name, rows), expected, rtol=0.0, atol=1e-7)


@methods
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_opposite_rows_cancel(name: str, scale: float) -> None:
    if not ORACLES[name].opposite_cancel:
        pytest.skip(ORACLES[name].coordinatewise)
    row = scale * jacobian("iid", 1, seed=2, parameters=5)[0]
    assert direction(name, torch.stack((row, -row))).norm() <= 1e-7 * scale ** ORACLES[name].scale_power


@methods
@pytest.mark.parametrize("tasks", TASKS)
def test_zero_gradients_give_no_direction(name: str, tasks: int) -> None:
    assert (direction(name, torch.zeros(tasks, 4, dtype=torch.float64)) == 0.0).all()


@methods
@pytest.mark.parametrize("zeros", [1, 2])
def test_zero_rows_leave_a_descent_direction_for_the_other_tasks(name: str, zeros: int) -> None:
    rows = jacobian("common", 4, seed=5)
    rows[:zeros] = 0.0
    result = direction(name, rows)
    assert result.isfinite().all()
    assert (rows[zeros:] @ result > 0.0).all()


@methods
def test_rank_one_rows_of_one_sign_give_that_direction(name: str) -> None:
    if ORACLES[name].identical is None:
        pytest.skip(ORACLES[name].coordinatewise)
    row = jacobian("iid", 1, seed=7, parameters=6)
    result = direction(name, torch.tensor([[1.0], [2.0], [30.0]], dtype=torch.float64) * row)
    cosine = torch.nn.functional.cosine_similarity(result, row[0], dim=0)
    assert cosine == pytest.approx(1.0, abs=1e-9)


@methods
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rank_one_rows_of_mixed_sign_give_a_finite_bounded_direction(name: str, dtype: torch.dtype) -> None:
    row = jacobian("iid", 1, seed=7, parameters=6).to(dtype)
    rows = torch.tensor([[1.0], [2.0], [-3.0]], dtype=dtype) * row
    result = direction(name, rows)
    assert result.isfinite().all()
    assert result.norm() <= 10.0 * max(1.0, rows.norm().item())


@methods
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e3, 1e8])
@pytest.mark.parametrize("family", ["iid", "common", "spread_2"])
def test_scaling_all_gradients_follows_the_scale_law(name: str, scale: float, family: str) -> None:
    if scale < ORACLES[name].scale_law_from:
        pytest.skip("it takes so small a Jacobian for zero, see its row")
    rows = jacobian(family, 5, seed=11)
    factor = scale ** ORACLES[name].scale_power
    torch.testing.assert_close(
        direction(name, rows * scale) / factor, direction(name, rows), rtol=1e-6, atol=1e-9
    )


@methods
@pytest.mark.parametrize("decades", [3, 8])
def test_row_scales_matter_exactly_where_the_definition_says(name: str, decades: int) -> None:
    rows = jacobian("common", 4, seed=13)
    scaled = rows * 10.0 ** torch.linspace(-decades, decades, 4, dtype=torch.float64).unsqueeze(-1)
    result = direction(name, scaled)
    assert result.isfinite().all()
    same = torch.allclose(result, direction(name, rows), rtol=1e-6, atol=1e-9)
    assert same == ORACLES[name].row_scale_invariant


@methods
@pytest.mark.parametrize("family", ["iid", "conflicting", "spread_2"])
def test_the_order_of_tasks_does_not_matter(name: str, family: str) -> None:
    if not ORACLES[name].permutation_equivariant:
        pytest.skip("its random orders belong to task numbers; see test_pcgrad")
    rows = jacobian(family, 7, seed=17)
    shuffled = rows[torch.tensor([3, 0, 6, 1, 5, 2, 4])]
    torch.testing.assert_close(
        direction(name, shuffled), direction(name, rows), rtol=1e-6, atol=1e-8 * rows.norm().item()
    )


@methods
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_row_is_refused_with_the_index_of_its_task(name: str, bad: float) -> None:
    rows = jacobian("iid", 4, seed=0)
    rows[2, 1] = bad
    combiner = ORACLES[name].make(name, 4)
    before = {key: value.clone() for key, value in combiner.state_dict().items()}
    with pytest.raises(ValueError, match=r"tasks \[2\]"):
        combiner.combine(rows)
    assert all(torch.equal(value, before[key]) for key, value in combiner.state_dict().items())


@methods
def test_wrong_shapes_and_dtypes_are_refused(name: str) -> None:
    combiner = ORACLES[name].make(name, 4)
    for wrong in (torch.zeros(3, 5), torch.zeros(4), torch.zeros(4, 5, dtype=torch.int64)):
        with pytest.raises(ValueError, match="jacobian"):
            combiner.combine(wrong)


@methods
def test_inside_an_update_a_non_finite_row_does_not_raise(name: str) -> None:
    rows = jacobian("iid", 4, seed=0)
    rows[2, 1] = math.nan
    combiner = ORACLES[name].make(name, 4)
    with combiner.unchecked():
        assert combined(combiner, rows).shape == (16,)
    with pytest.raises(ValueError, match="non-finite"):
        combined(combiner, rows)


@methods
def test_losses_are_asked_for_exactly_where_they_are_needed(name: str) -> None:
    rows = jacobian("iid", 4, seed=0)
    combiner = ORACLES[name].make(name, 4)
    if ORACLES[name].needs_losses:
        with pytest.raises(ValueError, match=rf"{name} .*losses of shape \[T\]"):
            combiner.combine(rows)
    else:
        assert torch.equal(combiner.combine(rows), direction(name, rows))


@methods
@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_only_methods_that_say_so_refuse_losses_that_are_not_positive(name: str, bad: float) -> None:
    rows = jacobian("iid", 4, seed=0)
    losses = torch.tensor([1.0, 2.0, bad, 3.0], dtype=torch.float64)
    combiner = ORACLES[name].make(name, 4)
    before = {key: value.clone() for key, value in combiner.state_dict().items()}
    if combiner.positive_losses:
        with pytest.raises(ValueError, match=r"tasks \[2\].*shift='minimum'"):
            combiner.combine(rows, losses)
        assert all(torch.equal(value, before[key]) for key, value in combiner.state_dict().items())
        combiner = make_combiner(name, num_tasks=4, **(ORACLES[name].options | {"shift": "minimum"}))
        with pytest.raises(ValueError, match="shift must be one of 'none', 'minimum'"):
            make_combiner(name, num_tasks=4, shift="lowest")
    for factor in (1.0, -1.0, 3.0, 0.5):
        assert combiner.combine(rows, factor * losses).isfinite().all()
        combiner.after_step(factor * losses - 1.0)


@methods
def test_a_restored_instance_continues_as_the_original(name: str) -> None:
    original = ORACLES[name].make(name, 5)
    for seed in range(3):
        advance(original, seed)
    restored = ORACLES[name].make(name, 5)
    restored.load_state_dict(original.state_dict())
    for seed in range(3, 7):
        assert torch.equal(advance(restored, seed), advance(original, seed))


@methods
def test_reset_gives_the_state_and_the_results_of_a_fresh_instance(name: str) -> None:
    used, fresh = (ORACLES[name].make(name, 5) for _ in range(2))
    fresh.prepare(torch.zeros(20, dtype=torch.float64))
    for seed in range(3):
        advance(used, seed)
    used.reset()
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in used.state_dict().items())
    assert torch.equal(advance(used, 9), advance(fresh, 9))


@methods
def test_state_stays_in_the_same_memory(name: str) -> None:
    combiner = ORACLES[name].make(name, 5)
    combiner.prepare(torch.zeros(20, dtype=torch.float64))
    places = {key: value.data_ptr() for key, value in combiner.named_buffers()}
    advance(combiner, 1)
    combiner.reset()
    combiner.load_state_dict(combiner.state_dict())
    assert {key: value.data_ptr() for key, value in combiner.named_buffers()} == places


@methods
@pytest.mark.parametrize("tasks", [10, 50])
def test_single_precision_gives_the_direction_of_double_precision(name: str, tasks: int) -> None:
    rows = jacobian("iid", tasks, seed=23, parameters=20_000)
    single, double = direction(name, rows.float()), direction(name, rows)
    assert single.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(single.double(), double, dim=0) > 1.0 - 1e-6


@methods
def test_conflict_makes_a_difference_to_the_mean(name: str) -> None:
    result, mean = direction(name, CONFLICT), CONFLICT.mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity(result, mean, dim=0)
    assert (cosine < 0.999) == (name != "mean" and not ORACLES[name].starts_as_mean)


@methods
def test_metrics_hold_finite_device_tensors_about_the_last_call(name: str) -> None:
    combiner = ORACLES[name].make(name, 3)
    result = combined(combiner, CONFLICT)
    metrics = combiner.metrics()
    assert metrics["weights"].shape == (3,)
    assert all(isinstance(value, Tensor) and value.isfinite().all() for value in metrics.values())
    if isinstance(combiner, GramCombiner):
        torch.testing.assert_close(metrics["weights"].double() @ CONFLICT, result, rtol=1e-5, atol=1e-6)
        unit = CONFLICT / CONFLICT.norm(dim=1, keepdim=True)
        cosines = (unit @ unit.T)[torch.triu_indices(3, 3, 1).unbind()]
        ratio = result.norm() / CONFLICT.mean(dim=0).norm()
        expected = {"cos_min": cosines.min(), "cos_mean": cosines.mean(), "direction_norm_ratio": ratio}
        for key, value in expected.items():
            torch.testing.assert_close(metrics[key], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(metrics["conflict_fraction"].double(), (cosines < 0).double().mean())
    if "residual" in metrics:
        assert metrics["residual"].abs() < 1e-5


@methods
@pytest.mark.parametrize("tasks", [1, 4])
def test_metrics_are_finite_without_gradients_and_before_the_first_call(name: str, tasks: int) -> None:
    combiner = ORACLES[name].make(name, tasks)
    for _ in range(2):
        assert all(value.isfinite().all() for value in combiner.metrics().values())
        combined(combiner, torch.zeros(tasks, 3))


@methods
def test_the_direction_is_the_weighted_sum_of_the_rows(name: str) -> None:
    rows = jacobian("iid", 5, seed=4)
    losses = torch.linspace(0.1, 3.0, 5, dtype=torch.float64)
    combiner, other = (ORACLES[name].make(name, 5) for _ in range(2))
    result = combiner.combine(rows, losses)
    if isinstance(other, GramCombiner):
        torch.testing.assert_close(other.weights(rows @ rows.T) @ rows, result)
    elif isinstance(other, LossCombiner):
        torch.testing.assert_close(other.weights(losses) @ rows, result)


@methods
@given(
    tasks=st.integers(1, 12),
    parameters=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    decades=st.floats(0.0, 6.0),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_any_finite_gradients_give_a_finite_direction(
    name: str, tasks: int, parameters: int, seed: int, decades: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, parameters, generator=generator, dtype=torch.float64)
    rows *= 10.0 ** (decades * torch.randn(tasks, 1, generator=generator, dtype=torch.float64))
    result = direction(name, rows.to(dtype))
    assert result.isfinite().all()


ORACLE_CASES = [
    (name, family, tasks, seed)
    for name, row in ORACLES.items()
    for family in row.oracle_families
    for tasks in row.oracle_tasks
    for seed in range(2)
]


@pytest.mark.parametrize(("name", "family", "tasks", "seed"), ORACLE_CASES)
def test_the_independent_oracle_agrees(name: str, family: str, tasks: int, seed: int) -> None:
    rows = jacobian(family, tasks, seed=100 + seed)
    ORACLES[name].oracle(rows, direction(name, rows))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), sorted({(name, family) for name, family, *_ in ORACLE_CASES}))
def test_the_independent_oracle_agrees_on_fifty_tasks(name: str, family: str) -> None:
    if 10 not in ORACLES[name].oracle_tasks:
        pytest.skip("its oracle is for two tasks")
    for seed in range(3):
        rows = jacobian(family, 50, seed=200 + seed)
        ORACLES[name].oracle(rows, direction(name, rows))
