"""State that a combiner carries: its random stream, its dtypes, no graphs; and what torch does to modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.combiners import COMBINERS, Combiner, GramCombiner, make_combiner
from tests.combiners.calls import combined, methods
from tests.combiners.oracles import ORACLES
from tests.helpers.evaluators import Linear
from tests.helpers.matrices import jacobian

RANDOM = ("cagrad_fast", "graddrop", "gradvac", "pcgrad", "rlw", "sdmgrad_os")


@pytest.mark.parametrize("name", RANDOM)
def test_streams_give_different_numbers_and_equal_streams_equal_ones(name: str) -> None:
    rows = jacobian("conflicting", 9, seed=0)
    results = {}
    for key, stream in (("first", 5), ("again", 5), ("second", 6), ("unseeded", 0)):
        combiner = make_combiner(name, num_tasks=9)
        combiner.seed(stream)
        results[key] = torch.stack([combiner.combine(rows) for _ in range(3)])
    fresh = make_combiner(name, num_tasks=9)
    assert torch.equal(results["first"], results["again"])
    assert torch.equal(results["unseeded"], torch.stack([fresh.combine(rows) for _ in range(3)]))
    assert not torch.equal(results["first"], results["second"])
    assert not torch.equal(results["first"], results["unseeded"])


def test_the_stream_is_part_of_the_state_and_outlives_a_reset() -> None:
    first, second = (make_combiner("rlw", num_tasks=4) for _ in range(2))
    first.seed(12)
    second.load_state_dict(first.state_dict())
    second.reset()
    rows = jacobian("iid", 4, seed=0)
    assert torch.equal(first.combine(rows), second.combine(rows))


def test_neighbouring_streams_share_no_number() -> None:
    drawn: list[set[int]] = []
    for stream in range(3):
        combiner = make_combiner("rlw", num_tasks=100)
        combiner.seed(stream)
        values = torch.cat([combiner.combine(torch.eye(100, dtype=torch.float64)) for _ in range(20)])
        drawn.append({int(value) for value in (values * 2**52).long()})
    assert not drawn[0] & drawn[1]
    assert not drawn[1] & drawn[2]


@pytest.mark.parametrize(("name", "base"), [("turns", "rlw"), ("blocks", "pcgrad"), ("fs_mtl", "gradvac")])
def test_members_of_an_instance_without_a_seed_draw_for_themselves(name: str, base: str) -> None:
    options = {"sizes": (2, -1)} if name == "blocks" else {}
    combiner = make_combiner(name, num_tasks=4, base=base, **options)
    streams = [int(one.stream) for one in combiner.modules() if isinstance(one, Combiner)]
    assert len(streams) == len(set(streams)) == 3
    combiner.seed(0)  # which is what it has already
    assert [int(one.stream) for one in combiner.modules() if isinstance(one, Combiner)] == streams


@pytest.mark.parametrize("stream", [-1, 2**63, 1.0, True])
def test_a_stream_must_be_a_natural_number(stream: int) -> None:
    with pytest.raises(ValueError, match=r"stream must be an integer in \[0, 2\^63\)"):
        make_combiner("rlw", num_tasks=2).seed(stream)


@methods
def test_a_model_that_changes_its_dtype_leaves_the_state_of_its_method_alone(name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        if name != "torchjd" or dtype != torch.bfloat16:  # TorchJD solves in NumPy, which has none
            _train_beside_a_model_of(dtype, name)


def _train_beside_a_model_of(dtype: torch.dtype, name: str) -> None:
    holder, other = (nn.ModuleDict({"method": ORACLES[name].make(name, 4)}) for _ in range(2))
    holder.to(dtype)
    for key, buffer in other["method"].named_buffers():
        if buffer.dtype in (torch.float64, torch.int64):
            assert holder["method"].get_buffer(key).dtype == buffer.dtype
    for seed in range(3):
        rows = jacobian("iid", 4, seed).to(dtype).double()  # what both can hold
        result = combined(holder["method"], rows.to(dtype))  # type: ignore[arg-type]
        expected = combined(other["method"], rows)  # type: ignore[arg-type]
        assert result.dtype == dtype
        tolerance = 0.02 if dtype != torch.float32 else 1e-4
        apart = float((result.double() - expected).norm())
        assert apart <= tolerance * float(expected.norm()) * len(rows), dtype


@methods
def test_a_conversion_of_all_buffers_leaves_counters_and_streams_alone(name: str) -> None:
    holder = nn.ModuleDict({"method": ORACLES[name].make(name, 4)})
    before = {key: (buffer.dtype, buffer.clone()) for key, buffer in holder.named_buffers()}
    holder.type(torch.float32)
    for key, buffer in holder.named_buffers():
        dtype, value = before[key]
        if dtype in (torch.float64, torch.int64):
            assert buffer.dtype == dtype
            assert torch.equal(buffer, value)


@methods
def test_a_first_use_under_inference_mode_leaves_a_method_usable_outside(name: str) -> None:
    rows = jacobian("iid", 4, seed=0)
    plain, used = ORACLES[name].make(name, 4), ORACLES[name].make(name, 4)
    with torch.inference_mode():
        made = ORACLES[name].make(name, 4)
    for inside in (True, False, True, False):
        expected = combined(plain, rows)
        for combiner in (used, made):
            with torch.inference_mode(inside):
                found = combined(combiner, jacobian("iid", 4, seed=0))
            torch.testing.assert_close(found.clone(), expected)
    for combiner in (used, made):
        combiner.reset()
        combined(combiner, rows)


@pytest.mark.parametrize("name", sorted(name for name in COMBINERS if COMBINERS[name].row_state))
def test_gradients_of_another_dtype_than_the_state_are_refused_and_the_state_can_follow(name: str) -> None:
    combiner, rows = ORACLES[name].make(name, 3), jacobian("iid", 3, seed=0)
    combined(combiner, rows.float())
    with pytest.raises(ValueError, match=r"state of torch.float32; found gradients of torch.float64.*\.to\("):
        combined(combiner, rows)
    combined(combiner.to(torch.float64), rows)


@methods
def test_inputs_with_a_graph_are_not_kept_alive(name: str) -> None:
    combiner = ORACLES[name].make(name, 3)
    weight = torch.ones(3, 5, dtype=torch.float64, requires_grad=True)
    rows, losses = weight * jacobian("iid", 3, seed=0, parameters=5), weight.sum(dim=1) + 1.0
    for _ in range(2):
        try:
            direction = combiner.combine(rows, losses)
        except ValueError:  # it takes evaluators alone, whose Jacobians are detached
            direction = combiner.direction(Linear(rows.detach(), losses=losses.detach()))
        if combiner.looks_again:
            combiner.after_step(losses)
    assert not direction.requires_grad
    assert not any(buffer.requires_grad for buffer in combiner.buffers())
    assert not any(value.requires_grad for value in combiner.metrics().values())


def test_gramians_work_under_torchs_newer_precision_setting() -> None:
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch has no newer setting")
    rows = jacobian("iid", 3, seed=0).float()
    expected = make_combiner("cagrad", num_tasks=3).combine(rows)
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(make_combiner("cagrad", num_tasks=3).combine(rows), expected)
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
        torch.set_float32_matmul_precision("highest")


def test_a_product_leaves_torchs_setting_for_all_devices_in_force() -> None:
    backends: Any = torch.backends
    matmul: Any = getattr(backends.mkldnn, "matmul", None)
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch has no newer setting")
    before, own = backends.fp32_precision, matmul.fp32_precision
    try:
        matmul.fp32_precision = "none"  # of its own; it follows the setting for all
        backends.fp32_precision = "tf32"
        make_combiner("cagrad", num_tasks=3).combine(torch.eye(3))
        assert matmul.fp32_precision == "tf32"
        backends.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"
    finally:
        backends.fp32_precision, matmul.fp32_precision = before, own


def test_half_precision_gradients_do_not_overflow_in_the_gramian() -> None:
    rows = (300.0 * jacobian("iid", 4, seed=0, parameters=50)).half()
    assert rows.float().square().sum(dim=1).max() > torch.finfo(torch.float16).max
    result = make_combiner("cagrad", num_tasks=4).combine(rows)
    expected = make_combiner("cagrad", num_tasks=4).combine(rows.double())
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in COMBINERS if not ORACLES[name].reads_host))
def test_a_compiled_method_keeps_its_state(name: str) -> None:
    compiled, plain = (ORACLES[name].make(name, 4) for _ in range(2))
    for one in (compiled, plain):
        one.prepare(torch.zeros(16, dtype=torch.float64))
    torch.compiler.reset()
    with compiled.unchecked():
        step = torch.compile(combined, backend="aot_eager")
        for seed in range(3):
            rows = jacobian("iid", 4, seed)
            torch.testing.assert_close(step(compiled, rows), combined(plain, rows), rtol=1e-6, atol=1e-9)
    for (key, value), expected in zip(compiled.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9, equal_nan=True, msg=key)


OWN = '''
import torch
from mtrl.combiners import GramCombiner


class Inverse(GramCombiner):
    """Weights inverse to the gradients' squares."""

    name = "inverse"

    def __init__(self, *, num_tasks: int, power: float = 1.0) -> None:
        super().__init__(num_tasks=num_tasks)
        self.power = power

    def _weights(self, gram: torch.Tensor) -> torch.Tensor:
        return gram.diagonal() ** -self.power
'''


def test_a_method_of_a_users_file_is_found_by_path_by_class_and_by_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(COMBINERS, "_plugins", dict(COMBINERS._plugins))  # for this test alone
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    rows = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    first = make_combiner(f"{path}:Inverse", num_tasks=2)
    assert first.combine(rows).tolist() == [0.5, 0.25]
    again = make_combiner(type(first), num_tasks=2, power=0.5)
    assert again.combine(rows).tolist() == [1.0, 1.0]
    COMBINERS.register("users_own_inverse", type(first))
    assert make_combiner("users_own_inverse", num_tasks=2).combine(rows).tolist() == [0.5, 0.25]
    with pytest.raises(ValueError, match=r"unknown argument 'pwer' of inverse\. Did you mean 'power'"):
        make_combiner(f"{path}:Inverse", num_tasks=2, pwer=1.0)
    with pytest.raises(ValueError, match=r"unknown name in .*mine\.py 'Invers'\. Did you mean 'Inverse'"):
        make_combiner(f"{path}:Invers", num_tasks=2)


def test_what_is_no_method_is_refused() -> None:
    class Half(GramCombiner):
        name = "half"

    class Nameless(GramCombiner):
        def _weights(self, gram: Tensor) -> Tensor:
            return gram[0]

    with pytest.raises(ValueError, match="lacks _weights"):
        make_combiner(Half, num_tasks=2)
    with pytest.raises(ValueError, match="needs a class attribute `name`"):
        make_combiner(Nameless, num_tasks=2)
    with pytest.raises(ValueError, match="must be a subclass"):
        make_combiner("pathlib:Path", num_tasks=2)


@pytest.mark.parametrize("refresh", [4, 50])
def test_a_first_gradient_that_is_not_finite_does_not_stop_nash_for_a_period(refresh: int) -> None:
    combiner = make_combiner("nash_mtl", num_tasks=3, refresh_every=refresh)
    rows = jacobian("iid", 3, seed=0)
    with combiner.unchecked():
        assert not combiner.combine(rows * torch.nan).isfinite().all()
    for seed in range(3):
        assert combiner.combine(jacobian("iid", 3, seed)).norm() > 0.5
