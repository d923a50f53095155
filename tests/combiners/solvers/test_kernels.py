"""The kernels of CUDA devices solve what the host solves; without a GPU they run in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import COMBINERS, GramCombiner, _state
from mtrl.combiners._random import _hashed, _sorted
from mtrl.combiners.pcgrad import PCGrad
from mtrl.combiners.solvers import adam, backends, bargaining, equal, hull, projections, surgery, worst_case
from tests.combiners.oracles import ORACLES
from tests.combiners.solvers.problems import DTYPES, KINDS, drawn, gramian_of

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of divisions in the interpreter

DOUBLE = torch.finfo(torch.float64).eps
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def reference(tasks: int) -> Tensor:
    weights = torch.arange(1, tasks + 1, dtype=torch.float64)
    return weights / weights.sum()


# An objective returns its value, and the size of the terms that it is the sum of: their rounding is its own.


def worst_gain(gram: Tensor, found: Any) -> tuple[float, float]:
    """Least gain of a direction, over the mean norm under the dual."""
    weights, dual = found
    return _least(gram, weights, 0.0, 0.0, dual)


def gain_in_cone(gram: Tensor, found: Any) -> tuple[float, float]:
    weights, length, _ = found
    scale = weights[-1] / torch.where(length > 0.0, length, 1.0)
    column = gram.mean(dim=1) * scale
    total = weights[:-1].sum().clamp(min=1e-300)
    return _least(gram, weights[:-1], column, gram.abs().mean(dim=1) * scale, weights[:-1] / total)


def _least(gram: Tensor, weights: Tensor, more: Any, size: Any, dual: Tensor) -> tuple[float, float]:
    lengths = gram.diagonal().clamp(min=0.0).sqrt()
    unit = (dual @ lengths).clamp(min=1e-300)
    gains = torch.where(lengths > 0.0, gram @ weights + more, torch.inf)
    terms = torch.where(dual > 0.0, gram.abs() @ weights.abs() + size, 0.0)
    return float(gains.min() / unit), float(terms.max() / unit)


def square(gram: Tensor, found: Any) -> tuple[float, float]:
    """|g_w|^2 over the mean square of the gradients under w."""
    return float(found @ gram @ found / (found @ gram.diagonal()).clamp(min=1e-300)), 1.0


def rows_of_projections(gram: Tensor, found: Any) -> tuple[float, float]:
    lengths = gram.diagonal().clamp(min=0.0).sqrt()
    scales = torch.outer(lengths, lengths)
    unit = gram / torch.where(scales > 0.0, scales, 1.0)
    unit.fill_diagonal_(1.0)
    return float(torch.einsum("ij,jk,ik->i", found, unit, found).mean()), 1.0


def orders(gram: Tensor) -> Tensor:
    """A random order of the other tasks for each task [T, T-1]."""
    return PCGrad(num_tasks=len(gram)).draw_orders().to(gram.device)


def emtl(gram: Tensor) -> Tensor:
    """EMTL's weights for losses of either sign."""
    exact = gram.double()
    lengths = exact.diagonal().clamp(min=0.0).sqrt()
    cosines = exact / torch.outer(lengths, lengths).clamp(min=1e-300)
    losses = torch.linspace(-1.0, 2.0, len(gram), dtype=torch.float64, device=gram.device)
    return backends.solve("emtl", cosines, (lengths, losses), (0.5,))


def vaccine(gram: Tensor) -> Tensor:
    """GradVac's weights and targets, one below the other [T + 1, T], from targets of all angles."""
    targets = torch.linspace(-1.0, 1.0, gram.numel(), dtype=torch.float64, device=gram.device).view_as(gram)
    weights, moved = surgery.turned(gram, orders(gram), targets, 0.3)
    return torch.cat((weights.unsqueeze(0), moved))


# Name, the call with the Gramian and its eps, and the objective of what it returns.
SOLVES: dict[
    str, tuple[Callable[[Tensor, float], Any], Callable[[Tensor, Any], tuple[float, float]] | None]
] = {
    "hull": (lambda gram, eps: hull.shortest_in_hull(gram, eps=eps), square),
    "capped": (lambda gram, eps: hull.shortest_capped(gram, 0.37, eps=eps), square),
    "around": (lambda gram, eps: worst_case.best_around(gram, 0.3, eps=eps), worst_gain),
    "around a reference": (
        lambda gram, eps: worst_case.best_around(
            gram,
            0.9,
            eps=eps,
            reference=reference(len(gram)).to(gram.device),
            factor=torch.full((1,), 1.7, dtype=torch.float64, device=gram.device),
        ),
        worst_gain,
    ),
    "cone": (lambda gram, eps: worst_case.best_in_cone(gram, 0.3, eps=eps), gain_in_cone),
    "nash": (lambda gram, eps: bargaining.bargaining_weights(gram, ridge=16.0 * eps), None),
    "fair": (
        lambda gram, eps: bargaining.bargaining_weights(gram, ridge=16.0 * eps, alpha=2.3),
        None,
    ),
    "projections": (
        lambda gram, eps: projections.cone_weights(gram, ridge=16.0 * eps),
        rows_of_projections,
    ),
    "projection": (
        lambda gram, eps: projections.cone_projection(
            gram, reference(len(gram)).to(gram.device), ridge=16.0 * eps
        ),
        square,
    ),
    "sum 1": (lambda gram, eps: equal.equal_projections(gram, projected=False), None),
    "equal": (lambda gram, eps: equal.equal_projections(gram, projected=True), None),
    "emtl": (lambda gram, eps: emtl(gram), None),
    "surgery": (lambda gram, eps: surgery.projected(gram, orders(gram)), square),
    "vaccine": (lambda gram, eps: vaccine(gram), None),
}


def problem(kind: tuple[str, float], tasks: int, seed: int) -> Tensor:
    """A Jacobian [T, P] of a family, or with rows that are zero, cancel, or lie near one line."""
    family, decades = kind
    if family in dict(KINDS):
        return drawn(family, decades, tasks, seed)
    rows = drawn("iid", 0.0, tasks, seed)
    if family == "zero":
        rows[::3] = 0.0
    elif family == "cancelling":
        rows = rows - rows.mean(dim=0)
    elif family == "opposite":
        rows[1] = -0.7 * rows[0]
    else:
        rows = rows[:, :1].sign() * rows[:1] + 1e-2 * rows
    return rows


ALL_KINDS = [*KINDS, ("zero", 0.0), ("cancelling", 0.0), ("opposite", 0.0), ("line", 0.0)]


def compare(
    name: str,
    kind: tuple[str, float],
    tasks: int,
    dtype: torch.dtype,
    patch: pytest.MonkeyPatch,
    seed: int = 3,
) -> None:
    call, objective = SOLVES[name]
    gram, eps = gramian_of(problem(kind, tasks, seed), dtype), torch.finfo(dtype).eps
    exact = (gram.double() + gram.double().T) / 2.0
    expected = call(gram, eps)
    if DEVICE == "cpu":
        by_kernel(patch)
    found = call(gram.to(DEVICE), eps)
    found = found.cpu() if isinstance(found, Tensor) else tuple(part.cpu() for part in found)
    if name in ("equal", "sum 1", "emtl"):  # the direction, relative to the terms that it is the sum of
        apart, terms = found - expected, expected.abs() @ exact.diagonal().sqrt()
        assert float((apart @ exact @ apart).clamp(min=0.0).sqrt()) <= 1e-6 * float(terms)
    elif name == "vaccine":  # a closed form
        lengths = exact.diagonal().clamp(min=0.0).sqrt()
        apart = (found[0] - expected[0]) * lengths
        assert float(apart.abs().max()) <= 1e-6 * float((expected[0] * lengths).abs().max())
        torch.testing.assert_close(found[1:], expected[1:], rtol=0.0, atol=1e-6)
    elif objective is None:  # bargains: where there is none, the objective is that of the ridge
        apart = found - expected
        terms = float(expected @ exact.diagonal().sqrt())
        assert float((apart @ exact @ apart).clamp(min=0.0).sqrt()) <= 1e-6 * terms
        if kind in KINDS and kind[0] != "deficient":  # there is one
            assert float(apart.abs().max()) <= 1e-2 * float(expected.abs().max())
    else:
        (value, _), (wanted, terms) = objective(exact, found), objective(exact, expected)
        # A Gramian of single precision does not determine its objective any further, nor do terms that nearly
        # cancel: long gradients beside short ones, a cone around a mean of which only rounding is left.
        bound = max(1e-9, eps / 4.0) * max(1.0, abs(wanted)) + 8.0 * DOUBLE * terms
        assert abs(value - wanted) <= bound, (value, wanted, bound)


def by_kernel(patch: pytest.MonkeyPatch) -> None:
    """Let problems on a CPU go to the kernels."""
    from mtrl.combiners.solvers import kernels

    def solve(name: str, gram: Tensor, vectors: Any = (), numbers: Any = ()) -> Tensor:
        result = torch.empty(backends.PROBLEMS[name].shape(len(gram)), dtype=torch.float64)
        kernels.launch(name, gram.contiguous(), list(vectors), list(numbers), result)
        return result

    patch.setattr(backends, "_on_host", solve)


@pytest.mark.dear
@pytest.mark.parametrize("name", SOLVES)
def test_a_kernel_solves_as_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(name, ("conflicting", 4.0), 3, torch.float64, monkeypatch)


@pytest.mark.parametrize("kind", [("iid", 0.0), ("zero", 0.0), ("opposite", 0.0)], ids=str)
@pytest.mark.parametrize("name", ["hull", "around", "around a reference", "cone", "projection"])
def test_a_path_ends_at_the_hosts_end(
    name: str, kind: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(name, kind, 4, torch.float32, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=["double", "single"])
@pytest.mark.parametrize("tasks", [2, 10, 25, backends.MOST_TASKS])
@pytest.mark.parametrize("kind", ALL_KINDS, ids=str)
@pytest.mark.parametrize("name", SOLVES)
def test_kernels_solve_all_families_as_the_host(
    name: str, kind: tuple[str, float], tasks: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(name, kind, tasks, dtype, monkeypatch)


@pytest.mark.dear
def test_a_single_task_and_no_gradient_at_all_are_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    for gram in (torch.full((1, 1), 4.0), torch.zeros(3, 3)):
        for call, _ in SOLVES.values():
            with monkeypatch.context() as patch:
                expected = call(gram, 1e-7)
                by_kernel(patch)
                found = call(gram, 1e-7)
            for own, other in zip(found, expected, strict=True):
                torch.testing.assert_close(own, other)


@pytest.mark.dear
def test_problems_that_are_not_finite_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gram = gramian_of(drawn("iid", 0.0, 3, 0), torch.float64)
    gram[1, 1] = torch.nan
    by_kernel(monkeypatch)
    for call, _ in SOLVES.values():
        call(gram, 1e-7)


# The interpreter takes types that the compiler refuses. In a process of its own, where it is off.
_COMPILE = """
import re, subprocess, sys, tempfile, torch, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mtrl.combiners.solvers.backends import PROBLEMS
from mtrl.combiners.solvers.kernels import planned
from mtrl.combiners.solvers.kernels_adam import adam
from mtrl.combiners.solvers.kernels_hash import hashed, shuffled
import mtrl.combiners

target = GPUTarget("cuda", 90, 32)
types = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
reader = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
numbers = {"hull": [1e-7], "ball": [1e-7], "cone": [0.3, 1e-7], "capped": [0.3, 1e-7], "surgery": [0.0],
           "bargain": [2.0, 1e-6, 1e-6, 1e-6, 38], "cone_weights": [1e-6], "cone_projection": [1e-6],
           "vaccine": [0.1], "equal": [1, 1e-6], "emtl": [0.1]}
plans = [(name, given) for name, given in numbers.items()]
plans += [("around", [0.3, 1e-7, referred, scaled]) for referred in (0, 1) for scaled in (0, 1)]
assert {name for name, _ in plans} == {name for name, one in PROBLEMS.items() if one.most_tasks}
for tasks in map(int, sys.argv[1:]):
    for name, given in plans:
        count = min(tasks, PROBLEMS[name].most_tasks)
        many = {"emtl": 2, "around": 2, "ball": 1, "cone_projection": 1}.get(name, 0)
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


def test_the_hash_of_random_numbers_is_the_hosts() -> None:
    from mtrl.combiners.solvers.kernels_hash import launch

    keys = torch.arange(-700, 1500, device=DEVICE).view(2, -1)
    step, stream = torch.tensor([[12345], [-(2**63) + 7]], device=DEVICE)
    assert torch.equal(launch(keys, step, stream), _hashed(keys, step, stream))


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (1, 50), (10, 9)])
def test_random_orders_are_the_hosts(shape: tuple[int, int]) -> None:
    from mtrl.combiners.solvers.kernels_hash import launch_shuffle

    items = torch.arange(shape[0] * shape[1], device=DEVICE).mul(7).view(shape)
    step, stream = torch.tensor([[12345], [-(2**63) + 7]], device=DEVICE)
    assert torch.equal(launch_shuffle(items, step, stream), _sorted(items, step, stream))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_step_of_learned_weights_is_torchs_adam(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtrl.combiners.solvers.kernels_adam import launch

    monkeypatch.setattr(adam, "stepped", launch)
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


def test_a_batch_of_problems_is_solved_one_by_one() -> None:
    grams = torch.stack([gramian_of(drawn("conflicting", 0.0, 4, seed), torch.float64) for seed in range(3)])
    found = torch.vmap(lambda gram: hull.shortest_in_hull(gram, eps=1e-15))(grams)
    for gram, own in zip(grams, found, strict=True):
        torch.testing.assert_close(own, hull.shortest_in_hull(gram, eps=1e-15))
