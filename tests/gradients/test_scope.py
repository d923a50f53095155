"""What a step may touch and what it refuses: situation x family of methods."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtrl import mtl_step
from mtrl.combiners import make_combiner
from tests.helpers.cases import case
from tests.helpers.three_tasks import FAMILIES, INPUTS, TASKS, Problem, nan_loss, third_free


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
    "one loss is NaN": (lambda p: {"losses": nan_loss(p)}, r"losses of tasks \[1\] are not finite:"),
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
@pytest.mark.parametrize("situation", REFUSED)
def test_a_step_that_cannot_be_right_is_refused_before_anything_moves(situation: str) -> None:
    change, message = REFUSED[situation]
    for name in FAMILIES:
        problem = Problem(name)
        before = problem.values()
        with case(name):
            with pytest.raises(ValueError, match=message):
                problem.step(**change(problem))
            assert torch.equal(problem.values(), before)
            assert all(not state for state in problem.optimizer.state.values())


@pytest.mark.parametrize("given", [list, torch.stack, None], ids=["list", "vector", "function"])
def test_a_step_is_the_same_where_gradients_are_switched_off(given: Callable[[Any], Any] | None) -> None:
    """As torch's optimisers evaluate a closure. Losses that are given bring their graph with them."""
    for name in FAMILIES:
        plain, off = Problem(name), Problem(name)
        if given is not None and (plain.combiner.looks_again or plain.combiner.needs_also):
            continue
        plain.step()
        losses: Any = off.losses if given is None else given(off.losses())
        with case(name):
            with torch.no_grad():
                off.step(losses)
            torch.testing.assert_close(off.values(), plain.values(), rtol=0.0, atol=0.0)


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
        heads=[problem.heads[0], problem.heads[1], nn.Identity()], losses=lambda b: third_free(problem)
    )
    assert torch.equal(problem.heads[0].weight, before)
    assert not torch.equal(problem.heads[1].weight, second)


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


@pytest.mark.parametrize("name", ["famo", "momentum"])
@pytest.mark.parametrize(
    ("held", "called"), [("first", r"0\.weight"), ("other", r"a tensor of shape \[2, 2\]")]
)
def test_a_gradient_that_is_not_finite_is_not_added_to(held: str, called: str, name: str) -> None:
    """With `accumulate` the step goes along all gradients that are there but those of frozen parameters."""
    problem = Problem(name)
    problem.second.bias.requires_grad_(False).grad = torch.full((4,), torch.nan, dtype=torch.float64)
    problem.step(accumulate=True)
    problem.optimizer.zero_grad()
    before, weight = problem.values(), getattr(problem, held).weight
    weight.grad = torch.full_like(weight, torch.nan)
    state = copy.deepcopy(problem.combiner.state_dict())
    with pytest.raises(ValueError, match=f"non-finite gradients of {called}: no step was taken"):
        problem.step(accumulate=True)
    assert torch.equal(problem.values(), before)
    assert all(torch.equal(value, state[key]) for key, value in problem.combiner.state_dict().items())


def test_heads_in_another_optimiser_are_warned_of_once() -> None:
    """Nothing trains them: a step leaves no gradient for the other optimiser."""
    problem = Problem("cagrad")
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    body = nn.Parameter(torch.ones((), dtype=torch.float64))  # of the second micro-batch alone

    def losses(batch: int) -> list[Tensor]:
        return [body * loss for loss in problem.losses()] if batch else problem.losses()

    arguments: Any = {"optimizer": optimizer, "micro_batches": 2}
    before = problem.values()
    with pytest.warns(RuntimeWarning, match=r"depend on 7 parameters .* nor in the optimizer") as told:
        mtl_step(problem.combiner, losses, problem.model, **arguments)
    assert told[0].filename == __file__
    assert not torch.equal(problem.values(), before)
    mtl_step(problem.combiner, losses, problem.model, **arguments)


@pytest.mark.parametrize(
    ("name", "half"), [("famo", "model"), ("cagrad", "head"), ("momentum", "model"), ("adatask", "head")]
)
def test_a_scaler_that_refuses_leaves_everything_as_it_was(name: str, half: str) -> None:
    """It unscales no gradients in half precision."""
    first, norm, heads = nn.Linear(2, 3), nn.BatchNorm1d(3), [nn.Linear(3, 1) for _ in range(TASKS)]
    model = nn.Sequential(first, norm)
    (first if half == "model" else heads[0]).half()
    parts = [model, *heads]
    optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.1)
    first.bias.grad = torch.ones_like(first.bias)
    before = [value.clone() for part in parts for value in part.state_dict().values()]

    def losses(batch: int) -> list[Tensor]:
        features = norm(first(INPUTS.to(first.weight.dtype)).float())
        return [head(features.to(head.weight.dtype)).float().square().mean() for head in heads]

    scaler, combiner = torch.amp.GradScaler("cpu", init_scale=2.0), make_combiner(name, num_tasks=TASKS)
    combiner.prepare(torch.cat([p.detach().flatten() for p in model.parameters()]))
    state = copy.deepcopy(combiner.state_dict())
    with pytest.raises(ValueError, match="Attempting to unscale FP16"):
        mtl_step(combiner, losses, model, optimizer, heads=heads, scaler=scaler)
    assert all(torch.equal(value, state[key]) for key, value in combiner.state_dict().items())
    after = [value for part in parts for value in part.state_dict().values()]
    assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))
    assert torch.equal(first.bias.grad, torch.ones_like(first.bias))
    assert norm.weight.grad is None


@pytest.mark.parametrize("late", [False, True])
def test_an_error_of_the_losses_arrives_as_it_is(late: bool) -> None:
    problem, batches = Problem("fs_mtl"), iter([None] * late)

    def losses(batch: int) -> list[Tensor]:
        next(batches)
        return problem.losses()

    with pytest.raises(StopIteration):
        problem.step(losses)


@pytest.mark.dear
@pytest.mark.filterwarnings("ignore")  # of torch, about a group of one process
def test_sharded_parameters_are_refused_by_name(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    inputs, combiner = INPUTS.float(), make_combiner("mean", num_tasks=TASKS)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sharded = nn.Linear(2, TASKS)
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        wrapped = FullyShardedDataParallel(
            nn.Linear(2, TASKS), device_id=torch.device("cpu"), use_orig_params=True
        )
        for model, shared in ((sharded, sharded), (sharded, list(sharded.parameters())), (wrapped, wrapped)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with pytest.raises(ValueError, match="sharded parameters have no gradients of single tasks"):
                mtl_step(combiner, lambda b, m=model: m(inputs).square().mean(0), shared, optimizer)  # type: ignore[misc]
    finally:
        torch.distributed.destroy_process_group()
