"""Several processes take the same step, or none does: situation x family of methods."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from multiprocessing import set_forkserver_preload
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from tests.helpers.cases import case
from tests.helpers.three_tasks import FAMILIES, INPUTS, TASKS, Problem, nan_loss, third_free


# Each situation gives a process its losses; `what` is what both must do.
def _halves(problem: Problem, rank: int) -> None:
    problem.rows = torch.arange(len(INPUTS)).chunk(2)[rank]


def _overflowing(problem: Problem, rank: int) -> dict[str, Any]:
    _halves(problem, rank)
    factor = 1e300 if rank == 1 else 1.0  # times the scale it leaves double precision
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    return {"losses": lambda b: [loss * factor for loss in problem.losses()], "scaler": scaler}


def _infinite(problem: Problem, rank: int) -> dict[str, Any]:
    _halves(problem, rank)
    factor = torch.inf if rank == 0 else 1.0
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    return {"losses": lambda b: [problem.losses()[0] * factor, *problem.losses()[1:]], "scaler": scaler}


def _head_unused(problem: Problem, rank: int) -> dict[str, Any]:
    _halves(problem, rank)
    free = problem.losses if rank == 0 else lambda b=0: third_free(problem)
    return {"losses": free}


def _no_labels(problem: Problem, rank: int) -> dict[str, Any]:
    _halves(problem, rank)
    return {"losses": lambda b: torch.zeros(TASKS, dtype=torch.float64) if rank else problem.losses()}


def _no_labels_in_single_precision(problem: Problem, rank: int) -> dict[str, Any]:
    _halves(problem, rank)
    return {"losses": lambda b: torch.zeros(TASKS) if rank else problem.losses()}


def _no_labels_of_one_task(problem: Problem, rank: int) -> dict[str, Any]:
    _halves(problem, rank)
    missing = torch.zeros((), dtype=torch.float64)
    return {"losses": lambda b: [*problem.losses()[:2], missing] if rank else problem.losses()}


def _no_labels_with_a_scaler(problem: Problem, rank: int) -> dict[str, Any]:
    return _no_labels(problem, rank) | {"scaler": torch.amp.GradScaler("cpu", init_scale=2.0)}


def _layer_unused(problem: Problem, rank: int) -> dict[str, Any]:
    """The forward pass communicates, as that of SyncBatchNorm, so all processes must run as many of them."""
    _halves(problem, rank)

    def losses(batch: int) -> list[Tensor]:
        hidden = problem.first(INPUTS[problem.rows])
        centre = hidden.detach().mean(0)
        torch.distributed.all_reduce(centre)
        hidden = torch.tanh(hidden - centre / 2.0)
        features = hidden if rank else problem.second(hidden)
        return [head(features).square().mean() for head in problem.heads]

    return {"losses": losses}


def _regulariser_on_one(problem: Problem, rank: int) -> dict[str, Any]:
    for parameter in (problem.other.weight, problem.first.weight):
        parameter.grad = torch.ones_like(parameter) if rank else None
    return {"accumulate": not problem.combiner.preconditioned}


def _accumulation_on_one(problem: Problem, rank: int) -> dict[str, Any]:
    if problem.combiner.preconditioned:
        return _unlike_batches(problem, rank)
    return {"accumulate": rank == 0}


def _frozen_on_one(problem: Problem, rank: int) -> dict[str, Any]:
    problem.first.requires_grad_(rank == 0)
    return {}


class _Communicates(torch.autograd.Function):
    """Communicates in the backward pass, as SyncBatchNorm does."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        torch.distributed.all_reduce(gradient.clone())
        return gradient


def _heads_communicate(problem: Problem, rank: int) -> dict[str, Any]:
    """One process has no labels; both must run as many backward passes."""

    def losses(batch: int) -> list[Tensor]:
        features = problem.model(INPUTS)
        apply: Any = _Communicates.apply
        found = [apply(head(features)) for head in problem.heads]
        return [(0.0 if rank else 1.0) * outputs.square().mean() for outputs in found]

    return {"losses": losses, "chunk_size": 1}


def _others_frozen(problem: Problem, rank: int) -> dict[str, Any]:
    (problem.first if rank else problem.second).bias.requires_grad_(False)  # both have 4 numbers
    return {}


def _bound_on_one(problem: Problem, rank: int) -> dict[str, Any]:
    return {"max_norm": 0.1 if rank else None}


def _crash(problem: Problem, rank: int) -> dict[str, Any]:
    def losses(batch: int) -> list[Tensor]:
        if rank == 1:
            raise KeyError("a broken sample")
        return problem.losses()

    return {"losses": losses}


def _nan_on_one(problem: Problem, rank: int) -> dict[str, Any]:
    return {"losses": nan_loss(problem) if rank else problem.losses}


def _unlike_batches(problem: Problem, rank: int) -> dict[str, Any]:
    return {"micro_batches": 1 + rank}


TOGETHER: dict[str, tuple[Callable[[Problem, int], dict[str, Any]], str]] = {
    "an overflow on one process": (_overflowing, "skip"),
    "an infinite loss on one process": (_infinite, "skip"),
    "a head that one process does not use": (_head_unused, "step"),
    "a layer that one process does not use": (_layer_unused, "step"),
    "a process without labels": (_no_labels, "step"),
    "a process without labels, in single precision": (_no_labels_in_single_precision, "step"),
    "a process without labels of one task": (_no_labels_of_one_task, "step"),
    "a process without labels, with a scaler": (_no_labels_with_a_scaler, "step"),
    "gradients of a regulariser on one process": (_regulariser_on_one, "step"),
    "accumulation on one process": (_accumulation_on_one, "refuse"),
    "a layer frozen on one process": (_frozen_on_one, "refuse"),
    "a head whose backward pass communicates": (_heads_communicate, "step"),
    "another layer frozen on each process": (_others_frozen, "refuse"),
    "a bound of the length on one process": (_bound_on_one, "refuse"),
    "a process that fails": (_crash, "refuse"),
    "a NaN on one process": (_nan_on_one, "refuse"),
    "another number of batches": (_unlike_batches, "refuse"),
}


def _worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=1),  # processes out of step wait no longer
    )
    found: dict[Any, Any] = {}
    for situation, (change, _) in TOGETHER.items():
        for name in FAMILIES:
            problem = Problem(name, torch.optim.SGD)
            before, error = problem.values(), ""
            try:
                for _ in range(2):
                    problem.step(distributed=True, **change(problem, rank))
            except (ValueError, KeyError, RuntimeError) as raised:
                error = f"{type(raised).__name__}: {raised}"
            found[situation, name] = (before, problem.values(), error)
    found["trained"] = {name: _trained(name, rank) for name in ("cagrad", "famo", "pcgrad")}
    alone = Problem()
    with pytest.warns(RuntimeWarning, match="each process trains a model of its own"):
        alone.step()
    wrapped = nn.parallel.DistributedDataParallel(alone.model)
    with pytest.raises(ValueError, match=r"found a DistributedDataParallel.*Pass its `\.module`"):
        alone.step(model=wrapped, distributed=True)
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _trained(name: str, rank: int | None) -> tuple[Tensor, Tensor]:
    """Values and weights after three steps of one of two processes, or of one process with all rows."""
    problem = Problem(name, torch.optim.SGD)
    if rank is not None:
        _halves(problem, rank)
    for _ in range(3):
        problem.step(distributed=rank is not None)
    return problem.values(), problem.combiner.last_weights


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What both processes found in all situations."""
    folder = tmp_path_factory.mktemp("ranks")
    set_forkserver_preload([__name__, "torch._dynamo"])
    start_processes(_worker, (str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.dear
@pytest.mark.parametrize("situation", TOGETHER)
def test_all_processes_take_the_same_step_or_none(ranks: list[dict[Any, Any]], situation: str) -> None:
    what = TOGETHER[situation][1]
    for name in FAMILIES:
        (before, first, first_error), (_, second, second_error) = (rank[situation, name] for rank in ranks)
        with case(name):
            assert torch.equal(first, second)
            assert torch.equal(first, before) == (what != "step")
            assert bool(first_error) == bool(second_error) == (what == "refuse")
            if situation == "a process that fails":
                assert "KeyError" in second_error
                assert "another process failed" in first_error
            if situation == "a NaN on one process":
                assert "tasks [1]" in second_error


@pytest.mark.dear
@pytest.mark.parametrize("name", ["mean", "cagrad", "famo"])
def test_a_process_without_labels_counts_as_losses_of_zero(ranks: list[dict[Any, Any]], name: str) -> None:
    found = ranks[0]["a process without labels", name][1]
    problem = Problem(name, torch.optim.SGD)
    problem.rows = torch.arange(len(INPUTS)).chunk(2)[0]
    for _ in range(2):
        problem.step(lambda b: [loss / 2.0 for loss in problem.losses()])
    torch.testing.assert_close(found, problem.values())


@pytest.mark.dear
def test_gradients_that_are_there_are_averaged_over_the_processes(ranks: list[dict[Any, Any]]) -> None:
    before, after, _ = ranks[0]["gradients of a regulariser on one process", "mean"]
    moves = (before - after)[-6:]  # of the layer that no loss uses, in two steps of 0.05 along 1 and 0
    torch.testing.assert_close(moves, torch.tensor([0.05] * 4 + [0.0] * 2, dtype=torch.float64))


@pytest.mark.dear
def test_two_processes_step_as_one_with_their_batches_together(ranks: list[dict[Any, Any]]) -> None:
    for name, (values, weights) in ranks[0]["trained"].items():
        expected_values, expected_weights = _trained(name, None)
        torch.testing.assert_close(values, expected_values)
        torch.testing.assert_close(weights, expected_weights)
        assert torch.equal(values, ranks[1]["trained"][name][0])
