"""What every method promises its caller: refusals, state, resume, metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtrl.combiners import Combiner, GramCombiner, LossCombiner, make_combiner
from mtrl.combiners.solvers.gramian import gramian, weighted_sum
from tests.combiners.calls import CONFLICT, NAMES, combined, methods
from tests.combiners.oracles import ORACLES
from tests.helpers.evaluators import Linear
from tests.helpers.loss_methods import losses_of
from tests.helpers.matrices import jacobian


def advance(combiner: Combiner, seed: int) -> Tensor:
    """One whole update on random gradients of five tasks, with the second look at the losses."""
    rows = jacobian("iid", 5, seed)
    result = combiner.direction(Linear(rows, losses=losses_of(rows)))
    combiner.after_step(losses_of(rows) * torch.linspace(0.5, 1.1, 5, dtype=torch.float64))
    return result


# Forms of methods that need more than a Jacobian in which `combine` alone can run them.
PLAIN: dict[str, dict[str, Any]] = {"fs_mtl": {"rho": 0.0}, "modo": {"batches": 1}}


def takes_a_jacobian(name: str, tasks: int) -> Combiner:
    """The method in a form that `combine` alone can run."""
    if name in PLAIN:
        return make_combiner(name, num_tasks=tasks, **PLAIN[name])
    return ORACLES[name].make(name, tasks)


jacobian_methods = pytest.mark.parametrize(
    "name", [name for name in NAMES if not takes_a_jacobian(name, 4).needs_also]
)


@jacobian_methods
def test_a_non_finite_row_is_refused_with_the_index_of_its_task(name: str) -> None:
    combiner = takes_a_jacobian(name, 4)
    before = {key: value.clone() for key, value in combiner.state_dict().items()}
    for bad in (math.nan, math.inf):
        rows = jacobian("iid", 4, seed=0)
        rows[2, 1] = bad
        with pytest.raises(ValueError, match=r"tasks \[2\]"):
            combiner.combine(rows, losses_of(rows).nan_to_num(1.0, 1.0))
        assert all(torch.equal(value, before[key]) for key, value in combiner.state_dict().items()), bad


@jacobian_methods
def test_wrong_shapes_and_dtypes_are_refused(name: str) -> None:
    for wrong in (torch.zeros(3, 5), torch.zeros(4), torch.zeros(4, 5, dtype=torch.int64)):
        with pytest.raises(ValueError, match="jacobian"):
            takes_a_jacobian(name, 4).combine(wrong, torch.ones(4))


@jacobian_methods
def test_inside_an_update_a_non_finite_row_does_not_raise(name: str) -> None:
    rows = jacobian("iid", 4, seed=0)
    rows[2, 1] = math.nan
    combiner = ORACLES[name].make(name, 4)
    with combiner.unchecked():
        assert combined(combiner, rows).shape == (16,)
    checked = takes_a_jacobian(name, 4)
    with checked.unchecked():
        pass
    with pytest.raises(ValueError, match="non-finite"):
        checked.combine(rows, torch.ones(4, dtype=rows.dtype))


@jacobian_methods
def test_losses_are_asked_for_exactly_where_they_are_needed(name: str) -> None:
    rows = jacobian("iid", 4, seed=0)
    combiner = takes_a_jacobian(name, 4)
    assert combiner.reads_losses == ORACLES[name].needs_losses
    if combiner.reads_losses:
        with pytest.raises(ValueError, match=rf"{name} .*losses of shape \[T\]"):
            combiner.combine(rows)
    else:
        other = takes_a_jacobian(name, 4)
        assert torch.equal(combiner.combine(rows), other.combine(rows, losses_of(rows)))


@methods
def test_a_method_that_needs_more_than_a_jacobian_refuses_one_and_says_what(name: str) -> None:
    combiner = ORACLES[name].make(name, 4)
    if combiner.needs_also:
        with pytest.raises(ValueError, match=f"{name} needs .*mtl_step"):
            combiner.combine(torch.ones(4, 3), torch.ones(4))


def test_a_method_that_learns_from_the_losses_after_the_step_asks_for_them() -> None:
    rows, losses = jacobian("iid", 3, seed=0), torch.ones(3, dtype=torch.float64)
    combiner = make_combiner("famo", num_tasks=3)
    combiner.combine(rows, losses)
    assert isinstance(combiner, LossCombiner)
    refused = r"famo learns from the losses after each step.*after_step"
    with pytest.raises(ValueError, match=refused):
        combiner.combine(rows, losses)
    with pytest.raises(ValueError, match=refused):
        combiner.weights(losses)
    combiner.after_step(losses)
    combiner.weights(losses)
    combiner.after_step(losses)
    combiner.combine(rows, losses)


@jacobian_methods
def test_only_methods_that_say_so_refuse_negative_losses(name: str) -> None:
    rows = jacobian("iid", 4, seed=0)
    losses = torch.tensor([1.0, 2.0, -1.0, 3.0], dtype=torch.float64)
    combiner = takes_a_jacobian(name, 4)
    before = {key: value.clone() for key, value in combiner.state_dict().items()}
    if combiner.positive_losses:
        with pytest.raises(ValueError, match=r"tasks \[2\].*shift='minimum'"):
            combiner.combine(rows, losses)
        assert all(torch.equal(value, before[key]) for key, value in combiner.state_dict().items())
        combiner = make_combiner(name, num_tasks=4, **(ORACLES[name].options | {"shift": "minimum"}))
        assert not combiner.refuses_signed_losses
        with pytest.raises(ValueError, match="shift must be one of 'none', 'minimum'"):
            make_combiner(name, num_tasks=4, shift="lowest")
    for factor in (1.0, -1.0, 3.0, 0.5):
        assert combiner.combine(rows, factor * losses).isfinite().all()
        combiner.after_step(factor * losses - 1.0)


@jacobian_methods
def test_a_loss_of_zero_is_no_error(name: str) -> None:
    rows = jacobian("iid", 4, seed=0)
    losses = torch.tensor([1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
    combiner = takes_a_jacobian(name, 4)
    for _ in range(3):
        assert combiner.combine(rows, losses).isfinite().all()
        combiner.after_step(losses * 0.5)


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
def test_state_stays_in_the_same_memory(name: str) -> None:
    combiner = ORACLES[name].make(name, 5)
    combiner.prepare(torch.zeros(20, dtype=torch.float64))
    places = {key: value.data_ptr() for key, value in combiner.named_buffers()}
    advance(combiner, 1)
    combiner.reset()
    combiner.load_state_dict(combiner.state_dict())
    assert {key: value.data_ptr() for key, value in combiner.named_buffers()} == places


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
def test_metrics_are_finite_without_gradients_and_before_the_first_call(name: str) -> None:
    for tasks in (1, 4):
        combiner = ORACLES[name].make(name, tasks)
        for _ in range(2):
            assert all(value.isfinite().all() for value in combiner.metrics().values()), tasks
            combined(combiner, torch.zeros(tasks, 3))


@jacobian_methods
def test_the_direction_is_the_weighted_sum_of_the_rows(name: str) -> None:
    rows = jacobian("iid", 5, seed=4)
    losses = torch.linspace(0.1, 3.0, 5, dtype=torch.float64)
    combiner, other = (takes_a_jacobian(name, 5) for _ in range(2))
    result = combiner.combine(rows, losses)
    if isinstance(other, GramCombiner):
        torch.testing.assert_close(other.weights(rows @ rows.T) @ rows, result)
    elif isinstance(other, LossCombiner):
        torch.testing.assert_close(other.weights(losses) @ rows, result)


def _precision() -> str:
    """The setting for products of float32 on a CPU, which is that of all devices before torch 2.9."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return str(getattr(matmul, "fp32_precision", None) or torch.get_float32_matmul_precision())


@pytest.mark.parametrize("old", [True, False], ids=["before torch 2.9", "this torch"])
@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
@pytest.mark.parametrize(
    "products",
    [
        lambda rows: gramian(rows),
        lambda rows: weighted_sum(rows[:, 0], rows),
        lambda rows: weighted_sum(rows[:, 0].double(), rows),
    ],
    ids=["gramian", "direction by float32 weights", "direction by float64 weights"],
)
def test_gramians_and_directions_are_formed_in_full_precision_whatever_the_process_has_set(
    setting: str,
    products: Callable[[torch.Tensor], torch.Tensor],
    old: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if old:
        monkeypatch.delattr(type(torch.backends.mkldnn), "matmul", raising=False)
    seen: list[str] = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if function.overloadpacket.__name__ in ("mm", "mv", "bmm", "addmm", "addmv"):
                seen.append(_precision())
            return function(*args, **(kwargs or {}))

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        with Products():  # type: ignore[no-untyped-call]
            products(torch.ones(3, 5000))
        assert set(seen) <= {"ieee", "none", "highest"}
        assert seen
        assert str(torch.get_float32_matmul_precision()) == setting
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
def test_gramians_on_cuda_are_those_of_the_cpu_under_reduced_precision() -> None:
    rows = torch.randn(10, 100_000, generator=torch.Generator().manual_seed(0)) + 1.0
    torch.set_float32_matmul_precision("medium")
    try:
        found = gramian(rows.cuda()).cpu()
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(found.double(), rows.double() @ rows.double().T, rtol=1e-5, atol=0.0)


@jacobian_methods
def test_gradients_without_entries_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must have shape \[4, P\] with P >= 1; found \[4, 0\]"):
        takes_a_jacobian(name, 4).combine(torch.zeros(4, 0), torch.ones(4))


@pytest.mark.parametrize("name", ["stch", "db_mtl"])
@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_tiny_losses_in_half_precision_are_solved_or_refused_with_the_reason(name: str, size: float) -> None:
    rows, losses = size * jacobian("iid", 3, seed=0), torch.full((3,), 1e-7)
    half, double = (make_combiner(name, num_tasks=3) for _ in range(2))
    given = rows.half(), losses.half()
    expected = double.combine(given[0].double(), given[1].double())
    if float(expected.abs().max()) > torch.finfo(torch.float16).max:
        with pytest.raises(ValueError, match=f"direction of {name} exceeds float16: pass .* float32"):
            half.combine(*given)
    else:
        torch.testing.assert_close(half.combine(*given).double(), expected, rtol=0.02, atol=0.02)
