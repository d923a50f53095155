"""What a step may touch, what it refuses, and what every process does: situation x family of methods."""

from __future__ import annotations

import copy
from collections.abc import Callable
from multiprocessing import set_forkserver_preload
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.utils.checkpoint import checkpoint

from mtrl import mtl_step
from mtrl.combiners import make_combiner

TASKS = 3
INPUTS = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).view(12, 2)
TARGETS = torch.stack((INPUTS.sum(1), 3.0 * INPUTS[:, 0], INPUTS.prod(1) + 1.0))

# One method of each family: losses alone, losses again after the step, Gramian, Jacobian, an optimiser of its
# own, gradients at moved parameters, several batches, some of the tasks.
FAMILIES = ["mean", "famo", "cagrad", "pcgrad", "adatask", "fs_mtl", "modo", "cagrad_fast"]


class Problem:
    """A body and a torso that three tasks share, a head for each, and a module that no task uses."""

    def __init__(self, name: str = "mean", optimizer: Any = torch.optim.Adam, **options: Any) -> None:
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 4)
        self.model = nn.Sequential(self.first, nn.Tanh(), self.second, nn.Tanh()).double()
        self.heads = [nn.Linear(4, 1).double() for _ in range(TASKS)]
        self.other = nn.Linear(2, 2).double()
        self.rows = torch.arange(len(INPUTS))
        self.combiner = make_combiner(name, num_tasks=TASKS)
        parts = (self.model, *self.heads, self.other)
        self.optimizer = optimizer([p for part in parts for p in part.parameters()], lr=0.05, **options)

    def losses(self, batch: int = 0) -> list[Tensor]:
        features = self.model(INPUTS[self.rows])
        return [
            (head(features).squeeze(-1) - target[self.rows]).square().mean()
            for head, target in zip(self.heads, TARGETS, strict=True)
        ]

    def step(self, losses: Callable[[int], Any] | None = None, **options: Any) -> Tensor:
        arguments: dict[str, Any] = {"model": self.model, "heads": self.heads, "optimizer": self.optimizer}
        return mtl_step(self.combiner, losses or self.losses, **(arguments | options))

    def values(self) -> Tensor:
        parts = (self.model, *self.heads, self.other)
        return torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])


def _bad_root(problem: Problem) -> Callable[[int], list[Tensor]]:
    def losses(batch: int) -> list[Tensor]:
        zero = (problem.first.bias * 0).square().sum().sqrt()  # 0, with a gradient of 0 / 0
        return [problem.losses()[0] + zero, *problem.losses()[1:]]

    return losses


def _bad_head(problem: Problem) -> Callable[[int], list[Tensor]]:
    def losses(batch: int) -> list[Tensor]:
        zero = (problem.heads[1].weight * 0).square().sum().sqrt()
        first, second, third = problem.losses()
        return [first, second + zero, third]

    return losses


def _nan_loss(problem: Problem) -> Callable[[int], list[Tensor]]:
    return lambda batch: [problem.losses()[0], problem.losses()[1] * torch.nan, problem.losses()[2]]


def _reentrant(problem: Problem, inputs: Tensor) -> Callable[[int], list[Tensor]]:
    def losses(batch: int) -> list[Tensor]:
        features = problem.model[1:](checkpoint(problem.first, inputs, use_reentrant=True))
        return [(head(features).squeeze(-1) - 1.0).square().mean() for head in problem.heads]

    return losses


def _tied(problem: Problem) -> dict[str, Any]:
    return {"heads": [*problem.heads[:2], [*problem.heads[2].parameters(), problem.second.weight]]}


def _without_trunk(problem: Problem) -> dict[str, Any]:
    heads = [p for head in problem.heads for p in head.parameters()]
    return {"optimizer": torch.optim.SGD([*heads, problem.first.weight], lr=0.1)}


def _copied(problem: Problem) -> dict[str, Any]:
    twin = copy.deepcopy(problem.model)
    heads = [p for head in problem.heads for p in head.parameters()]
    return {"model": twin, "optimizer": torch.optim.SGD([*twin.parameters(), *heads], lr=0.1)}


def _copied_heads(problem: Problem) -> dict[str, Any]:
    heads = copy.deepcopy(problem.heads)
    trained = [*problem.model.parameters(), *(p for head in heads for p in head.parameters())]
    return {"heads": heads, "optimizer": torch.optim.SGD(trained, lr=0.1)}


REFUSED: dict[str, tuple[Callable[[Problem], dict[str, Any]], str]] = {
    "parameters of another copy": (_copied, "depend on none of the parameters"),
    "heads of another copy": (_copied_heads, "depend on none of the parameters of the heads"),
    "a root at zero in shared parameters": (
        lambda p: {"losses": _bad_root(p)},
        r"non-finite gradient at 0\.bias",
    ),
    "a root at zero in a head": (
        lambda p: {"losses": _bad_head(p)},
        r"non-finite gradient at weight of heads\[1\]",
    ),
    "one loss is NaN": (lambda p: {"losses": _nan_loss(p)}, r"losses has non-finite entries in tasks \[1\]:"),
    "a reentrant checkpoint of inputs without gradient": (
        lambda p: {"losses": _reentrant(p, INPUTS)},
        "use_reentrant=False",
    ),
    "a reentrant checkpoint of inputs with gradient": (
        lambda p: {"losses": _reentrant(p, INPUTS.clone().requires_grad_())},
        "use_reentrant=False",
    ),
    "a parameter in model and head": (_tied, r"2\.weight is also parameter 2 of heads\[2\]"),
    "heads that are forgotten": (lambda p: {"heads": ()}, "neither in model nor in heads"),
    "one head short": (lambda p: {"heads": p.heads[:2]}, "heads must be one per task, 3; found 2"),
    "a trunk that the optimiser lacks": (_without_trunk, "3 are missing: 0.bias, 2.weight, 2.bias"),
    "losses by name": (
        lambda p: {"losses": lambda b: dict(enumerate(p.losses()))},
        r"found a dict: pass list",
    ),
    "losses as numbers": (
        lambda p: {"losses": lambda b: [loss.item() for loss in p.losses()]},
        "found a float",
    ),
    "one number for all": (lambda p: {"losses": lambda b: 0.5}, "found a float"),
    "too few losses": (lambda p: {"losses": lambda b: p.losses()[:2]}, "one per task, 3; found 2"),
    "losses without graph": (lambda p: {"losses": lambda b: torch.ones(TASKS)}, "requires_grad=False"),
    "an optimiser that evaluates by itself": (
        lambda p: {"optimizer": torch.optim.LBFGS([*p.model.parameters()], lr=0.1), "heads": ()},
        "LBFGS evaluates losses by itself",
    ),
    "no whole number of batches": (
        lambda p: {"micro_batches": 0},
        "micro_batches must be a positive integer",
    ),
    "a function without a batch": (
        lambda p: {"losses": lambda: p.losses()},
        "is called with the number of a batch",
    ),
    "no scaler": (lambda p: {"scaler": True}, "scaler must be a torch.amp.GradScaler or None; found True"),
    "no whole number of tasks": (lambda p: {"chunk_size": 0}, "chunk_size must be a positive number"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("situation", REFUSED)
def test_a_step_that_cannot_be_right_is_refused_before_anything_moves(situation: str, name: str) -> None:
    problem = Problem(name)
    change, message = REFUSED[situation]
    before = problem.values()
    with pytest.raises(ValueError, match=message):
        problem.step(**change(problem))
    assert torch.equal(problem.values(), before)
    assert all(not state for state in problem.optimizer.state.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_frozen_later_and_what_only_the_optimiser_holds_stays(name: str) -> None:
    problem = Problem(name)
    for parameter in problem.other.parameters():
        parameter.grad = torch.ones_like(parameter)
    problem.step()
    problem.first.requires_grad_(False)
    problem.heads[1].requires_grad_(False)
    still = [*problem.first.parameters(), *problem.heads[1].parameters(), *problem.other.parameters()]
    before = [parameter.detach().clone() for parameter in still]
    moving = problem.second.weight.detach().clone()
    if problem.combiner.row_state:  # it keeps numbers for each parameter
        with pytest.raises(ValueError, match="a new one when you freeze parameters"):
            problem.step()
        problem.combiner = make_combiner(name, num_tasks=TASKS)
    for _ in range(3):
        problem.step()
    assert all(torch.equal(now, old) for now, old in zip(still, before, strict=True))
    assert not torch.equal(problem.second.weight, moving)
    assert all(bool((p.grad == 1.0).all()) for p in problem.other.parameters() if p.grad is not None)
    assert problem.other.weight.grad is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_may_be_frozen_or_empty(name: str) -> None:
    problem = Problem(name)
    problem.heads[0].requires_grad_(False)
    before, second = problem.heads[0].weight.detach().clone(), problem.heads[1].weight.detach().clone()
    problem.step(
        heads=[problem.heads[0], problem.heads[1], nn.Identity()], losses=lambda b: _third_free(problem)
    )
    assert torch.equal(problem.heads[0].weight, before)
    assert not torch.equal(problem.heads[1].weight, second)


def _third_free(problem: Problem) -> list[Tensor]:
    return [*problem.losses()[:2], problem.model(INPUTS).square().mean()]


def test_a_module_of_its_own_with_no_gradient_costs_no_second_evaluation_later() -> None:
    problem = Problem("mean")
    calls: list[int] = []
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    problem.optimizer.add_param_group({"params": [unused]})

    def losses(batch: int) -> list[Tensor]:
        calls.append(batch)
        return problem.losses()

    for _ in range(3):
        problem.step(losses, model=[*problem.model.parameters(), unused])
    assert len(calls) == 4  # one look for a hidden checkpoint
    assert unused.tolist() == [1.0, 1.0]


# Two processes. Each situation gives a process its losses; `what` is what both must do.
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
    free = problem.losses if rank == 0 else lambda b=0: _third_free(problem)
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


def _crash(problem: Problem, rank: int) -> dict[str, Any]:
    def losses(batch: int) -> list[Tensor]:
        if rank == 1:
            raise KeyError("a broken sample")
        return problem.losses()

    return {"losses": losses}


def _nan_on_one(problem: Problem, rank: int) -> dict[str, Any]:
    return {"losses": _nan_loss(problem) if rank else problem.losses}


def _unlike_batches(problem: Problem, rank: int) -> dict[str, Any]:
    return {"micro_batches": 1 + rank}


TOGETHER: dict[str, tuple[Callable[[Problem, int], dict[str, Any]], str]] = {
    "an overflow on one process": (_overflowing, "skip"),
    "an infinite loss on one process": (_infinite, "skip"),
    "a head that one process does not use": (_head_unused, "step"),
    "a process without labels": (_no_labels, "step"),
    "a process without labels, in single precision": (_no_labels_in_single_precision, "step"),
    "a process without labels of one task": (_no_labels_of_one_task, "step"),
    "a process without labels, with a scaler": (_no_labels_with_a_scaler, "step"),
    "gradients of a regulariser on one process": (_regulariser_on_one, "step"),
    "accumulation on one process": (_accumulation_on_one, "refuse"),
    "a layer frozen on one process": (_frozen_on_one, "refuse"),
    "a process that fails": (_crash, "refuse"),
    "a NaN on one process": (_nan_on_one, "refuse"),
    "another number of batches": (_unlike_batches, "refuse"),
}


def _worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
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
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("situation", TOGETHER)
def test_all_processes_take_the_same_step_or_none(
    ranks: list[dict[Any, Any]], situation: str, name: str
) -> None:
    what = TOGETHER[situation][1]
    (before, first, first_error), (_, second, second_error) = (rank[situation, name] for rank in ranks)
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
