"""Checkpoints: what comes back, which ones are kept."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.extra.numpy as array_strategies
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrl.errors import UserError
from mtrl.runs import checkpoint
from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.checkpoints import assert_same, state_of

TENSOR_TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


ARRAY_TYPES = ["f8", "f4", "f2", "i8", "i4", "u8", "u4", "u2", "u1", "?", "c16", ">f8", ">i4"]


@pytest.mark.parametrize("dtype", TENSOR_TYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)], ids=str)
def test_tensors_come_back_bit_equal(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    save_checkpoint(tmp_path, 1, {"agent": tensor}, keep=1)
    assert_same(load_checkpoint(tmp_path)[1]["agent"], tensor)


@pytest.mark.parametrize("value", [(1 << 2039) - 1, 1 << 2039, -(1 << 2040), 1 << 5000], ids=int.bit_length)
def test_integers_of_any_size_come_back(tmp_path: Path, value: int) -> None:
    save_checkpoint(tmp_path, 1, {"envs": {"visited": value}}, keep=1)
    assert load_checkpoint(tmp_path)[1]["envs"] == {"visited": value}


@pytest.mark.parametrize("dtype", ARRAY_TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3, 4)], ids=str)
def test_arrays_come_back_as_arrays_bit_equal(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    scalars = {"a": np.dtype(dtype).type(1), "b": np.ones((), dtype)[()]}
    save_checkpoint(tmp_path, 1, {"envs": {"array": array, "scalars": scalars}}, keep=1)
    assert_same(load_checkpoint(tmp_path)[1]["envs"], {"array": array, "scalars": scalars})


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**140), 2**140)
    | st.floats()
    | st.text(max_size=8)
    | array_strategies.arrays(
        array_strategies.scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc"),
        array_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    )
)


TREES = st.recursive(
    LEAVES,
    lambda tree: (
        st.lists(tree, max_size=3)
        | st.lists(tree, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4) | st.integers(), tree, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.dear
@settings(max_examples=25, deadline=None)
@given(tree=TREES)
def test_any_tree_comes_back_bit_equal(tree: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(Path(directory), 3, {"part": tree}, keep=1)
        step, state = load_checkpoint(Path(directory))
    assert step == 3
    assert_same(state, {"part": tree})


def test_generators_and_optimisers_go_on_where_they_were(tmp_path: Path) -> None:
    generator, twin = np.random.default_rng(5), np.random.default_rng(0)
    torch_generator, torch_twin = torch.Generator().manual_seed(5), torch.Generator()
    layers = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
    optimisers = [torch.optim.Adam(layer.parameters(), lr=0.1) for layer in layers]

    def one_update(index: int, inputs: torch.Tensor) -> None:
        optimisers[index].zero_grad()
        layers[index](inputs).square().sum().backward()
        optimisers[index].step()

    one_update(0, torch.ones(2, 4))
    saved = {
        "rng": {"numpy": generator.bit_generator.state, "torch": torch_generator.get_state()},
        "agent": {"layer": layers[0].state_dict(), "adam": optimisers[0].state_dict()},
    }
    save_checkpoint(tmp_path, 1, saved, keep=1)
    _, state = load_checkpoint(tmp_path)
    twin.bit_generator.state = state["rng"]["numpy"]
    torch_twin.set_state(state["rng"]["torch"])
    layers[1].load_state_dict(state["agent"]["layer"])
    optimisers[1].load_state_dict(state["agent"]["adam"])

    for index in (0, 1):
        one_update(index, torch.full((2, 4), 0.3))
    assert_same(dict(layers[1].state_dict()), dict(layers[0].state_dict()))
    assert_same(twin.random(5), generator.random(5))
    draws = [torch.rand(5, generator=one) for one in (torch_twin, torch_generator)]
    assert_same(draws[0], draws[1])


def test_views_are_saved_without_the_storage_behind_them(tmp_path: Path) -> None:
    buffer = torch.arange(1_000_000.0)
    parts = {"rows": buffer[10:20], "expanded": buffer[:1].expand(5), "strided": buffer[:9].view(3, 3).t()}
    path = save_checkpoint(tmp_path, 1, {"replay": parts}, keep=1)
    assert (path / "replay.pt").stat().st_size < 20_000
    assert_same(load_checkpoint(tmp_path)[1]["replay"], {name: part.clone() for name, part in parts.items()})


def test_odd_arrays_keep_their_values(tmp_path: Path) -> None:
    frozen = np.arange(4.0)
    frozen.flags.writeable = False
    arrays = {"frozen": frozen, "fortran": np.asfortranarray(np.eye(3, 2)), "stride": np.arange(10)[::-3]}
    save_checkpoint(tmp_path, 1, {"envs": arrays}, keep=1)
    loaded = load_checkpoint(tmp_path)[1]["envs"]
    assert_same(loaded, arrays)
    loaded["frozen"][0] = 7.0
    assert frozen[0] == 0.0


def test_parameters_are_saved_as_plain_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"agent": torch.nn.Parameter(torch.ones(3))}, keep=1)
    loaded = load_checkpoint(tmp_path)[1]["agent"]
    assert type(loaded) is torch.Tensor and not loaded.requires_grad


class Pair(NamedTuple):
    one: int
    two: int


def test_named_tuples_become_tuples(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"counters": Pair(1, 2)}, keep=1)
    assert_same(load_checkpoint(tmp_path)[1]["counters"], (1, 2))


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        Path("x"),
        object(),
        np.array(["a", None], dtype=object),
        np.array("2020-01-01", dtype="M8[D]"),
        np.ma.masked_array([1.0, 2.0], [True, False]),
        torch.eye(3).to_sparse(),
        {"__numpy__": "f8"},
        {np.int64(1): 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused_with_their_place_and_leave_nothing(tmp_path: Path, value: Any) -> None:
    save_checkpoint(tmp_path, 1, state_of(1), keep=2)
    with pytest.raises(TypeError, match=r"envs\.pool\[1\]"):
        save_checkpoint(tmp_path, 2, {"agent": 1, "envs": {"pool": [0, value]}}, keep=2)
    assert os.listdir(tmp_path / "checkpoints") == ["step_000000001"]


@pytest.mark.parametrize("part", ["../evil", "Agent", "a/b", "", "manifest.json"])
def test_a_part_cannot_name_a_file_elsewhere(tmp_path: Path, part: str) -> None:
    with pytest.raises(ValueError, match="part name"):
        save_checkpoint(tmp_path, 1, {part: 1}, keep=1)


@pytest.mark.gpu
def test_cuda_tensors_come_back_on_the_cpu(tmp_path: Path) -> None:
    tensor = torch.randn(1000, device="cuda")
    save_checkpoint(tmp_path, 1, {"agent": tensor}, keep=1)
    loaded = load_checkpoint(tmp_path)[1]["agent"]
    assert loaded.device.type == "cpu"
    assert_same(loaded, tensor.cpu())


def test_mapped_parts_are_equal_and_writing_to_them_leaves_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_MAP_FROM_BYTES", 0)
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    first = load_checkpoint(tmp_path)[1]
    assert_same(first, state_of(1))
    first["agent"]["weight"].zero_()
    first["counters"]["returns"][:] = 0
    assert_same(load_checkpoint(tmp_path)[1], state_of(1))


# -- which checkpoint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (5, 10, 1_000, 999_999_999, 1_000_000_000):
        save_checkpoint(tmp_path, step, state_of(step), keep=keep)
        assert load_checkpoint(tmp_path)[0] == step
    names = ["step_1000000000", "step_999999999", "step_000001000"][:keep]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == sorted(names)


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep"):
        save_checkpoint(tmp_path, 1, state_of(1), keep=0)


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state_of(1), keep=2)
    save_checkpoint(tmp_path, 2, {"old": 1}, keep=2)
    save_checkpoint(tmp_path, 2, state_of(7), keep=2)
    assert_same(load_checkpoint(tmp_path), (2, state_of(7)))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_000000001", "step_000000002"]


def test_a_resumed_run_replaces_the_future_it_abandoned(tmp_path: Path) -> None:
    for step in (1, 5):
        save_checkpoint(tmp_path, step, state_of(step), keep=2)
    (tmp_path / "checkpoints/step_000000005/agent.pt").unlink()
    save_checkpoint(tmp_path, 3, state_of(3), keep=1)
    assert os.listdir(tmp_path / "checkpoints") == ["step_000000003"]


def test_no_checkpoint_at_all_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no valid checkpoint .* found none"):
        load_checkpoint(tmp_path)


def test_a_part_that_an_agent_never_saved_is_missing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    told: list[str] = []
    with pytest.raises(UserError, match=r"no valid checkpoint .* found 1 damaged"):
        load_checkpoint(tmp_path, parts=["absent"], warn=told.append)
    assert "files missing: ['absent.pt']" in told[0]


def test_loading_follows_a_trainer_that_prunes_meanwhile(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    shutil.rmtree(tmp_path / "checkpoints/step_000000001")
    (tmp_path / "checkpoints/step_000000001").mkdir()
    loaded = load_checkpoint(tmp_path, warn=lambda _: save_other(tmp_path))
    assert_same(loaded, (2, state_of(2)))


def save_other(run_dir: Path) -> None:
    save_checkpoint(run_dir, 2, state_of(2), keep=1)


def test_saving_and_loading_warn_about_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_checkpoint(tmp_path, 1, state_of(1), keep=1)
        load_checkpoint(tmp_path)
    assert caught == []
