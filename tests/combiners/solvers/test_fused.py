"""The solvers as Triton kernels, interpreted on the CPU, next to the same solvers as tensor operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from mtrl.combiners.solvers import fused as _fused
from mtrl.combiners.solvers import traced as _traced
from mtrl.combiners.solvers.bargaining import bargaining_weights
from mtrl.combiners.solvers.simplex import minimise_quadratic, minimise_root
from tests.helpers.matrices import FAMILIES, jacobian


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read where the kernels are defined, on the first import
    monkeypatch.setattr(_fused, "_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(_fused, "_trusted", {})


def gram_of(family: str, tasks: int) -> Tensor:
    rows = jacobian(family if family in FAMILIES else "iid", tasks, seed=tasks, parameters=100)
    if family == "absent" and tasks > 1:
        rows[1] = 0.0
    if family == "repeated" and tasks > 2:
        rows[2] = rows[0]
    return rows @ rows.T


def both(solve: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """By kernels and by tensor operations."""
    ours = solve()
    with _traced.plain():
        return ours, solve()


CASES = [  # interpreting takes seconds for every ten tasks
    *itertools.product((*FAMILIES, "absent", "repeated"), (3,)),
    *itertools.product(("conflicting", "deficient"), (1, 2, 10)),
    *(("iid", 16), ("conflicting", 33)),  # no padding, and much of it
]


@pytest.mark.triton
@pytest.mark.usefixtures("kernels")
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # numpy, where the interpreter divides by zero
@pytest.mark.parametrize(("family", "tasks"), CASES)
class TestKernels:
    def test_root(self, family: str, tasks: int) -> None:
        gram = gram_of(family, tasks)
        linear = gram.mean(dim=1) / (0.5 * gram.mean().clamp(min=1e-30).sqrt())

        def objective(w: Tensor, slope: Tensor = linear) -> float:
            return float((w @ gram @ w).clamp(min=0.0).sqrt() + slope @ w)

        held = torch.ones(tasks, dtype=torch.float64)
        held[1:] = (torch.arange(1, tasks) % 3 != 0).double()
        start = torch.rand(tasks, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
        scale = float(gram.diagonal().mean().sqrt() + linear.abs().max())
        ours, theirs = both(lambda: minimise_root(gram, linear))
        assert ours.sum() == pytest.approx(1.0)
        assert objective(ours) == pytest.approx(objective(theirs), abs=1e-9 * scale)
        ours, theirs = both(lambda: minimise_root(gram, linear, start=start))
        assert objective(ours) == pytest.approx(objective(theirs), abs=1e-9 * scale)
        ours, theirs = both(lambda: minimise_root(gram, linear.abs(), normal=held))
        assert torch.dot(ours, held) == pytest.approx(1.0)
        assert objective(ours, linear.abs()) == pytest.approx(
            objective(theirs, linear.abs()), abs=1e-9 * scale
        )

    def test_quadratic(self, family: str, tasks: int) -> None:
        gram = gram_of(family, tasks)
        ours, theirs = both(lambda: minimise_quadratic(gram))
        assert ours.sum() == pytest.approx(1.0)
        assert ours.min() >= 0.0
        bound = 1e-12 * float(gram.diagonal().mean())
        assert float(ours @ gram @ ours) == pytest.approx(float(theirs @ gram @ theirs), abs=bound)

    def test_bargain(self, family: str, tasks: int) -> None:
        gram = gram_of(family, tasks)
        ours, theirs = both(lambda: bargaining_weights(gram, ridge=2e-6))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)


@pytest.mark.triton
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("method", ["cagrad", "conicgrad", "imgrad", "mgda", "nash_mtl", "sdmgrad"])
def test_methods_give_the_same_direction_by_kernels(method: str) -> None:
    rows = jacobian("conflicting", 10, seed=3)
    ours, theirs = both(lambda: make_combiner(method, num_tasks=10).combine(rows))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.triton
@pytest.mark.usefixtures("kernels")
def test_recorded_transformed_and_large_problems_are_not_for_kernels() -> None:
    assert _fused.usable(torch.eye(64))
    assert not _fused.usable(torch.eye(65))
    assert not _fused.usable(torch.eye(3).expand(2, 3, 3))
    batch = torch.stack([gram_of("iid", 3), gram_of("conflicting", 3)])
    each = torch.stack([minimise_quadratic(gram) for gram in batch])
    torch.testing.assert_close(torch.vmap(minimise_quadratic)(batch), each)


def test_kernels_that_do_not_run_are_given_up_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused, "_DEVICES", ("cpu",))
    monkeypatch.setattr(_fused, "_trusted", {})

    def broken() -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(_fused, "_kernels", broken)
    with pytest.warns(RuntimeWarning, match="no such instruction") as caught:
        first, second = (minimise_quadratic(gram_of("iid", 4)) for _ in range(2))
    assert len(caught) == 1
    assert torch.equal(first, second)


def test_kernels_that_disagree_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused, "_DEVICES", ("cpu",))
    monkeypatch.setattr(_fused, "_trusted", {})
    monkeypatch.setattr(_fused, "_run", lambda kernel, tensors, iterations, **constants: tensors[0][0].abs())
    with pytest.warns(RuntimeWarning, match="disagree"):
        assert not _fused.usable(torch.eye(3))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["cagrad", "conicgrad", "mgda", "nash_mtl", "sdmgrad"])
@pytest.mark.parametrize("tasks", [2, 10, 50])
def test_kernels_on_cuda_give_the_directions_of_the_cpu(method: str, tasks: int) -> None:
    rows = jacobian("conflicting", tasks, seed=5)
    there = make_combiner(method, num_tasks=tasks).cuda().combine(rows.cuda())
    assert _fused._trusted[there.device]
    here = make_combiner(method, num_tasks=tasks).combine(rows)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-6, atol=1e-8)
