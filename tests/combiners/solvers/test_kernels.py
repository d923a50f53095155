"""The kernels of CUDA devices compute what the host does; without a GPU they run on NumPy."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from mtrl.combiners import COMBINERS, GramCombiner, _state
from mtrl.combiners._random import _hashed, _sorted
from mtrl.combiners.solvers import adam
from tests.combiners.oracles import ORACLES
from tests.combiners.solvers.problems import ALL_KINDS, DTYPES, KINDS, problem

pytest.importorskip("triton")
from mtrl.combiners.solvers import backends, kernels
from tests.combiners.solvers.solves import DEVICE, SOLVES, by_kernel, by_triton, failures, solved_by_kernel
from tests.helpers import plain_triton

LONG = {"nash", "around a reference", "sum 1"}  # seconds in Triton's interpreter
assert SOLVES.keys() >= LONG


@pytest.mark.dear
@pytest.mark.skipif(DEVICE == "cuda", reason="sums on a GPU have another order")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of divisions in the interpreter
@pytest.mark.parametrize("family", ["conflicting", pytest.param("opposite", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in SOLVES]
)
def test_kernels_on_numpy_give_the_bits_of_tritons_interpreter(name: str, family: str) -> None:
    gram = problem(family, 0.0, 3, 3, torch.float32)
    found = []
    for run in (by_triton, plain_triton.run):
        torch.manual_seed(0)  # of the orders of gradients
        with by_kernel(run):
            found.append(SOLVES[name][0](gram, 1e-7))
    for own, other in zip(*found, strict=True):
        assert torch.equal(own, other)


def test_every_kernel_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    on_host = backends._on_host

    def noted(name: str, *given: Any) -> torch.Tensor:
        seen.add(name)
        return on_host(name, *given)

    monkeypatch.setattr(backends, "_on_host", noted)
    for call, _ in SOLVES.values():
        call(torch.eye(2), 1e-7)
    assert seen == {name for name, one in backends.PROBLEMS.items() if one.most_tasks}


@pytest.mark.dear
@pytest.mark.parametrize("kind", ALL_KINDS, ids=str)
def test_kernels_solve_as_the_host(kind: tuple[str, float]) -> None:
    single = [torch.float32]  # in `make kernels` both types everywhere
    assert not failures(SOLVES, kind, [3], DTYPES if kind in KINDS else single)


# `make kernels` runs this table.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_KINDS, ids=str)
@pytest.mark.parametrize("name", SOLVES)
def test_kernels_solve_all_families_as_the_host(name: str, kind: tuple[str, float]) -> None:
    # On NumPy a path of dependent gradients takes seconds where a pivot on each of 62 tasks is made at each
    # corner, and UPGrad walks one for each task.
    paths = name == "projections" and kind[0] in ("near_opposite_5", "rank_one")
    assert not failures([name], kind, [1, 2, 10, 25, 40 if paths else backends.MOST_TASKS])


@pytest.mark.slow
@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU rounds otherwise by itself")
@pytest.mark.parametrize("kind", ALL_KINDS, ids=str)
def test_kernels_that_round_otherwise_solve_all_families_as_the_host(kind: tuple[str, float]) -> None:
    with plain_triton.rounded_otherwise(seed=0):
        assert not failures(SOLVES, kind, [2, 10])


def test_a_single_task_and_no_gradient_at_all_are_solved() -> None:
    for gram, name in itertools.product((torch.full((1, 1), 4.0), torch.zeros(3, 3)), SOLVES):
        found = SOLVES[name][0](gram, 1e-7), solved_by_kernel(name, gram, 1e-7)
        for own, other in zip(*found, strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", SOLVES)
def test_problems_that_are_not_finite_end(name: str, number: float) -> None:
    whole, everywhere = problem("iid", 0.0, 4, 0, torch.float32), (slice(None), slice(None))
    places: list[tuple[Any, Any]] = [(0, 0), everywhere]
    if math.isnan(number):
        places += [(0, 1), (slice(None), 2), (2, slice(None))]
    for place in places:
        gram = whole.clone()
        gram[place] = number
        solved_by_kernel(name, gram, 1e-7)


# The interpreter takes types that the compiler refuses. In a process of its own, where it is off.
_COMPILE = """
import re, subprocess, sys, tempfile, torch, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mtrl.combiners.solvers.backends import PROBLEMS
from mtrl.combiners.solvers.kernels import adam, hashed, planned, shuffled
import mtrl.combiners

target = GPUTarget("cuda", 90, 32)
types = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
reader = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
numbers = {"hull": [1e-7], "cone": [0.3, 1e-7], "capped": [0.3, 1e-7], "surgery": [0.0],
           "bargain": [2.0, 1e-6, 1e-6, 1e-6, 38], "cone_weights": [1e-6], "cone_projection": [1e-6],
           "vaccine": [0.1], "equal": [1, 1e-6], "emtl": [0.1, 1e-6]}
plans = [(name, given) for name, given in numbers.items()]
plans += [("around", [0.3, 1e-7, scaled]) for scaled in (0, 1)]
assert {name for name, _ in plans} == {name for name, one in PROBLEMS.items() if one.most_tasks}
for tasks in map(int, sys.argv[1:]):
    for name, given in plans:
        count = min(tasks, PROBLEMS[name].most_tasks)
        many = {"emtl": 2, "around": 2, "cone_projection": 1}.get(name, 0)
        vectors = [torch.zeros(count, dtype=torch.float64)] * many
        if name in ("surgery", "vaccine"):
            vectors = [torch.zeros(count, count - 1, dtype=torch.int64), torch.zeros(count, count).double()]
        kernel, _, inputs, constants = planned(name, torch.zeros(count, count), vectors, given)
        options = {"num_warps": constants.pop("num_warps")}
        names = kernel.arg_names
        signature = dict(zip(names, [types[one.dtype] for one in inputs] + ["*fp64", "i32"]))
        signature |= dict.fromkeys(constants, "constexpr")
        values = {(names.index(key),): value for key, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        made = triton.compile(source, target=target, options=options)
        assert made.metadata.shared <= 48 * 1024, (name, tasks, made.metadata.shared)
        if reader.exists():  # registers that do not suffice spill to the stack
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                Path(file.name).write_bytes(made.asm["cubin"])
                usage = subprocess.run([reader, "-res-usage", file.name], capture_output=True, text=True)
            stack = int(re.search("STACK:(\\d+)", usage.stdout)[1])
            assert stack <= 32, (name, tasks, usage.stdout)  # calls, such as of divisions, take a few bytes
    size = {"N": triton.next_power_of_2(tasks)}
    for kernel, kind, pointers, constants in (
        (hashed, "*i64", 4, {"BLOCK": 1024}),
        (shuffled, "*i64", 4, size),
        (adam, "*fp64", 5, {"LR": 0.1, "DECAY": 0.1, **size}),
    ):
        names = kernel.arg_names
        signature = dict(zip(names, [kind] * pointers + ["i32"])) | dict.fromkeys(constants, "constexpr")
        values = {(names.index(key),): value for key, value in constants.items()}
        triton.compile(ASTSource(fn=kernel, signature=signature, constexprs=values), target=target)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [2, 10, 50, 64])
def test_kernels_compile_for_a_gpu_that_is_not_there_and_stay_in_its_registers(tasks: int) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-c", _COMPILE, str(tasks)], env=environment, check=True)


@pytest.fixture(params=["triton", "numpy"] if DEVICE == "cpu" else ["triton"])
def launched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton run the kernels that are no solves, and NumPy."""
    if request.param == "numpy":
        for name in ("hashed", "shuffled", "adam"):
            monkeypatch.setattr(kernels, name, plain_triton.Kernel(getattr(kernels, name)))


@pytest.mark.usefixtures("launched")
def test_the_hash_of_random_numbers_is_the_hosts() -> None:
    keys = torch.arange(-700, 1500, device=DEVICE).view(2, -1)
    step, stream = torch.tensor([[12345], [-(2**63) + 7]], device=DEVICE)
    assert torch.equal(kernels.launch_hash(keys, step, stream), _hashed(keys, step, stream))


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, 50), (10, 9)])
def test_random_orders_are_the_hosts(shape: tuple[int, int]) -> None:
    items = torch.arange(shape[0] * shape[1], device=DEVICE).mul(7).view(shape)
    step, stream = torch.tensor([[12345], [-(2**63) + 7]], device=DEVICE)
    assert torch.equal(kernels.launch_shuffle(items, step, stream), _sorted(items, step, stream))


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_step_of_learned_weights_is_torchs_adam(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "stepped", kernels.launch_adam)
    learned = _state.Learned(5, lr=0.1, weight_decay=decay).to(DEVICE)
    value = torch.zeros(5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    reference_adam = torch.optim.Adam([value], lr=0.1, weight_decay=decay)
    for step in range(4):
        value.grad = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64, device=DEVICE) * (step - 1.5)
        learned.update(value.grad.clone())
        reference_adam.step()
        torch.testing.assert_close(learned.value, value.detach(), rtol=1e-12, atol=1e-12)
    assert int(learned.step) == 4


def test_on_other_devices_a_solve_is_one_operation() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        seen: list[str]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for name in (name for name, cls in COMBINERS.items() if issubclass(cls, GramCombiner)):
        for tasks in (4, 50):
            combiner = ORACLES[name].make(name, tasks).to("meta")
            assert isinstance(combiner, GramCombiner)
            names = Names()  # type: ignore[no-untyped-call]
            names.seen = []
            with combiner.unchecked(), names:
                assert combiner.weights(torch.empty(tasks, tasks, device="meta")).shape == (tasks,)
            solves = sum("mtrl.solve" in operation for operation in names.seen)
            assert solves == {"imgrad": 2, "ngdiff": 0, "ntkmtl": 0, "normscale": 0}.get(name, 1), name
            assert len(names.seen) <= 60, (name, len(names.seen))
