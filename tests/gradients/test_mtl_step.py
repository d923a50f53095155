"""mtl_step against plain torch: what each method is, with heads, loss scales, micro-batches."""

from __future__ import annotations

import contextlib
import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mtrl import mtl_step
from mtrl.combiners import COMBINERS, make_combiner
from tests.helpers.three_tasks import FAMILIES

INPUTS = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).view(12, 2)
TARGETS = torch.stack((INPUTS.sum(1), 3.0 * INPUTS[:, 0], INPUTS.prod(1) + 1.0), dim=1)
TASKS = 3

trains_the_torso_alone = pytest.mark.filterwarnings("ignore:the losses depend on")


class Problem:
    """A torso that three tasks share, a head for each, of different sizes."""

    def __init__(self, *, normalised: bool = False) -> None:
        torch.manual_seed(3)
        middle: nn.Module = nn.BatchNorm1d(4) if normalised else nn.Tanh()
        self.torso = nn.Sequential(nn.Linear(2, 4), middle, nn.Linear(4, 4), nn.Tanh()).double()
        sizes = (1, 3, 2)
        self.heads = [nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, 1)).double() for n in sizes]
        self.calls: list[int] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for part in (self.torso, *self.heads) for p in part.parameters()]

    def losses_of(self, rows: Tensor) -> list[Tensor]:
        features = self.torso(INPUTS[rows])
        outputs = [head(features).squeeze(-1) for head in self.heads]
        return [(output - TARGETS[rows, task]).square().mean() for task, output in enumerate(outputs)]

    def losses(self, batch: int = 0) -> list[Tensor]:
        self.calls.append(batch)
        return self.losses_of(torch.arange(len(INPUTS)))

    def values(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters])


def test_the_mean_is_an_ordinary_step_but_for_heads_which_no_method_weighs() -> None:
    ours, plain = Problem(), Problem()
    steps = [torch.optim.Adam(problem.parameters, lr=0.01) for problem in (ours, plain)]
    combiner = make_combiner("mean", num_tasks=TASKS)
    for _ in range(5):
        losses = mtl_step(combiner, ours.losses, ours.torso, steps[0], heads=ours.heads)
        steps[1].zero_grad()
        expected = torch.stack(plain.losses())
        expected.mean().backward()
        for head in plain.heads:
            for parameter in head.parameters():
                assert parameter.grad is not None
                parameter.grad *= TASKS
        steps[1].step()
        torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(ours.values(), plain.values())


@trains_the_torso_alone
@pytest.mark.parametrize(
    ("name", "heads"), [(name, True) for name in sorted(COMBINERS)] + [(name, False) for name in FAMILIES]
)
def test_every_method_takes_a_step_or_says_what_is_missing(name: str, heads: bool) -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(problem.parameters if heads else problem.torso.parameters(), lr=0.01)
    combiner = make_combiner(name, num_tasks=TASKS)
    own = problem.heads if heads else ()
    if name == "inverse_alpha":
        with pytest.raises(ValueError, match="inverse_alpha needs the tasks' temperatures"):
            mtl_step(combiner, problem.losses, problem.torso, optimizer, heads=own)
        return
    before = problem.values()
    for _ in range(4):
        losses = mtl_step(combiner, problem.losses, problem.torso, optimizer, heads=own)
    assert losses.shape == (TASKS,)
    assert not torch.equal(problem.values(), before)
    assert set(problem.calls) == set(range(combiner.num_batches))


@pytest.mark.parametrize("name", ["famo", "fs_mtl", "modo"])
def test_losses_instead_of_a_function_are_refused_where_one_evaluation_is_not_enough(name: str) -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(problem.torso.parameters(), lr=0.01)
    before = problem.values()
    with pytest.raises(ValueError, match="pass a function"):
        mtl_step(make_combiner(name, num_tasks=TASKS), problem.losses(), problem.torso, optimizer)
    assert torch.equal(problem.values(), before)


def test_famo_learns_as_in_the_paper() -> None:
    ours, plain = Problem(), Problem()
    steps = [torch.optim.SGD(problem.parameters, lr=0.05) for problem in (ours, plain)]
    combiner = make_combiner("famo", num_tasks=TASKS, weight_decay=0.0)
    xi = torch.zeros(TASKS, dtype=torch.float64, requires_grad=True)
    learner = torch.optim.Adam([xi], lr=0.025)
    for _ in range(6):
        mtl_step(combiner, ours.losses, ours.torso, steps[0], heads=ours.heads)
        losses = torch.stack(plain.losses())
        shares = (xi.softmax(0) / losses).detach()
        shared, own = list(plain.torso.parameters()), [p for h in plain.heads for p in h.parameters()]
        gradients = torch.autograd.grad(shares / shares.sum() @ losses, shared, retain_graph=True)
        of_heads = torch.autograd.grad(losses.sum(), own)
        for parameter, gradient in zip([*shared, *own], (*gradients, *of_heads), strict=True):
            parameter.grad = gradient
        steps[1].step()
        fall = losses.detach().log() - torch.stack(plain.losses()).detach().log()
        (xi.grad,) = torch.autograd.grad(xi.softmax(0), xi, fall)
        learner.step()
    torch.testing.assert_close(ours.values(), plain.values())
    assert xi.abs().max() > 0.05


@trains_the_torso_alone
@pytest.mark.parametrize("failure", ["losses", "evaluation"])
@pytest.mark.parametrize(("name", "options"), [("famo", {}), ("momentum", {"base": "famo"})])
def test_a_second_look_that_fails_does_not_stop_the_steps_after_it(
    name: str, options: dict[str, str], failure: str
) -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(problem.torso.parameters(), lr=0.01)
    combiner = make_combiner(name, num_tasks=TASKS, **options)

    def losses(batch: int) -> Tensor:
        values = torch.stack(problem.losses(batch))
        if len(problem.calls) != 2:
            return values
        if failure == "losses":
            return values * torch.inf
        raise MemoryError

    with pytest.raises((ValueError, MemoryError)):
        mtl_step(combiner, losses, problem.torso, optimizer)
    before = problem.values()
    mtl_step(combiner, losses, problem.torso, optimizer)
    assert not torch.equal(problem.values(), before)


def test_fs_mtl_takes_each_task_to_its_own_place_heads_included() -> None:
    """With the mean as base the direction is the mean of the tasks' SAM gradients."""
    problem, rho = Problem(), 0.1
    optimizer = torch.optim.SGD(problem.parameters, lr=1.0)
    expected = problem.values()
    torso = sum(p.numel() for p in problem.torso.parameters())
    start = torso
    for task in range(TASKS):
        moved = copy.deepcopy(problem)
        parts = [list(part.parameters()) for part in (moved.torso, moved.heads[task])]
        gradients = torch.autograd.grad(moved.losses()[task], [*parts[0], *parts[1]])
        split = gradients[: len(parts[0])], gradients[len(parts[0]) :]
        with torch.no_grad():
            for part, own in zip(parts, split, strict=True):
                norm = math.sqrt(sum(float(g.square().sum()) for g in own))
                for parameter, gradient in zip(part, own, strict=True):
                    parameter.add_(rho * gradient / norm)
        there = torch.autograd.grad(moved.losses()[task], [*parts[0], *parts[1]])
        flat = torch.cat([g.flatten() for g in there])
        expected[:torso] -= flat[:torso] / TASKS
        size = len(flat) - torso
        expected[start : start + size] -= flat[torso:]
        start += size
    combiner = make_combiner("fs_mtl", num_tasks=TASKS, base="mean", rho=rho)
    mtl_step(combiner, problem.losses, problem.torso, optimizer, heads=problem.heads)
    torch.testing.assert_close(problem.values(), expected)


def test_an_optimisers_step_does_not_go_through_another_optimiser() -> None:
    problem = Problem()
    optimizer = torch.optim.Adam(problem.parameters, lr=0.01)
    before = [p.detach().clone() for p in problem.torso.parameters()]
    combiner = make_combiner("adatask", num_tasks=TASKS)
    mtl_step(combiner, problem.losses, problem.torso, optimizer, heads=problem.heads)
    for parameter, old in zip(problem.torso.parameters(), before, strict=True):
        moves = (old - parameter.detach()) / 0.01  # Adam's first step is a sign per task
        assert (moves.abs() < TASKS + 1e-2).all()
        assert ((moves - moves.round()).abs() < 1e-2).all()
        assert parameter not in optimizer.state


@pytest.mark.parametrize("name", ["cagrad", "famo", "mean"])
def test_micro_batches_give_the_step_of_the_whole_batch(name: str) -> None:
    whole, parts = Problem(), Problem()
    chunks = torch.arange(len(INPUTS)).chunk(3)
    combiners = [make_combiner(name, num_tasks=TASKS) for _ in range(2)]
    steps = [torch.optim.SGD(problem.parameters, lr=0.1) for problem in (whole, parts)]
    for _ in range(3):
        mtl_step(combiners[0], whole.losses, whole.torso, steps[0], heads=whole.heads)
        mtl_step(
            combiners[1],
            lambda batch: parts.losses_of(chunks[batch]),
            parts.torso,
            steps[1],
            heads=parts.heads,
            micro_batches=3,
        )
    torch.testing.assert_close(parts.values(), whole.values())


@pytest.mark.parametrize("name", ["fs_mtl", "famo", "sdmgrad_os", "cagrad_fast"])
def test_running_statistics_move_once_per_step(name: str) -> None:
    ours, once = Problem(normalised=True), Problem(normalised=True)
    once.losses()
    combiner = make_combiner(name, num_tasks=TASKS)
    optimizer = torch.optim.SGD(ours.parameters, lr=0.1)
    mtl_step(combiner, ours.losses, ours.torso, optimizer, heads=ours.heads)
    for ours_buffer, expected in zip(ours.torso.buffers(), once.torso.buffers(), strict=True):
        torch.testing.assert_close(ours_buffer, expected)


@trains_the_torso_alone
def test_frozen_parameters_stay_and_unused_ones_get_a_zero_gradient() -> None:
    problem = Problem()
    problem.torso[0].requires_grad_(False)
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    shared = [*problem.torso.parameters(), unused]
    frozen = [p.detach().clone() for p in problem.torso[0].parameters()]
    optimizer = torch.optim.Adam([*problem.torso.parameters(), unused], lr=0.1)
    mtl_step(make_combiner("cagrad", num_tasks=TASKS), problem.losses(), shared, optimizer)
    for parameter, value in zip(problem.torso[0].parameters(), frozen, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
    assert unused.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["nash_mtl", "famo", "m_config"])
def test_a_loss_scale_changes_nothing(name: str) -> None:
    scaled, plain = Problem(), Problem()
    combiners = [make_combiner(name, num_tasks=TASKS) for _ in range(2)]
    steps = [torch.optim.Adam(problem.parameters, lr=0.01) for problem in (scaled, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for _ in range(4):
        mtl_step(
            combiners[0],
            scaled.losses,
            scaled.torso,
            steps[0],
            heads=scaled.heads,
            scaler=scaler,
            max_norm=0.5,
        )
        mtl_step(combiners[1], plain.losses, plain.torso, steps[1], heads=plain.heads, max_norm=0.5)
    torch.testing.assert_close(scaled.values(), plain.values())


def test_an_overflow_skips_the_step_and_lowers_the_scale() -> None:
    problem = Problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(problem.parameters, lr=0.1)
    combiner = make_combiner("nash_mtl", num_tasks=TASKS)
    before = problem.values()

    def overflowing(batch: int) -> list[Tensor]:
        losses = problem.losses(batch)
        return [losses[0], losses[1] * math.inf, losses[2]]

    mtl_step(combiner, overflowing, problem.torso, optimizer, heads=problem.heads, scaler=scaler)
    assert torch.equal(problem.values(), before)
    assert scaler.get_scale() == 2.0**15
    mtl_step(combiner, problem.losses, problem.torso, optimizer, heads=problem.heads, scaler=scaler)
    assert not torch.equal(problem.values(), before)


@trains_the_torso_alone
@pytest.mark.parametrize("name", ["mean", "adatask", "m_config"])
def test_a_loss_scale_grows_after_steps_without_an_overflow(name: str) -> None:
    """By 2 after each second step, as the scaler is told to."""
    scaled, plain = Problem(), Problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    for problem, own in ((scaled, scaler), (plain, None)):
        optimizer = torch.optim.SGD(problem.torso.parameters(), lr=0.01, momentum=0.5)
        combiner = make_combiner(name, num_tasks=TASKS)
        for _ in range(4):
            mtl_step(combiner, problem.losses, problem.torso, optimizer, scaler=own)
    assert scaler.get_scale() == 16.0
    torch.testing.assert_close(scaled.values(), plain.values())


@pytest.mark.parametrize("factor", [1.0, math.inf], ids=["finite", "overflow"])
def test_gradients_that_were_unscaled_before_the_step_are_refused_by_torch(factor: float) -> None:
    problem = Problem()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.SGD(problem.parameters, lr=0.1)
    combiner = make_combiner("mean", num_tasks=TASKS)
    scaler.scale(torch.cat([p.flatten() for p in problem.parameters]).square().sum()).backward()
    scaler.unscale_(optimizer)
    before, gradients = problem.values(), [p.grad for p in problem.parameters]
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called"):
        mtl_step(
            combiner,
            lambda b: torch.stack(problem.losses(b)) * factor,
            problem.torso,
            optimizer,
            heads=problem.heads,
            scaler=scaler,
            accumulate=True,
        )
    assert torch.equal(problem.values(), before)
    assert all(p.grad is gradient for p, gradient in zip(problem.parameters, gradients, strict=True))


@trains_the_torso_alone
@pytest.mark.parametrize("scaled", [False, True], ids=["refused", "skipped"])
@pytest.mark.parametrize("name", sorted(set(COMBINERS) - {"inverse_alpha"}))
def test_a_step_that_is_not_taken_leaves_the_methods_state_alone(name: str, scaled: bool) -> None:
    problem = Problem()
    optimizer, combiner = (
        torch.optim.SGD(problem.torso.parameters(), lr=0.1),
        make_combiner(name, num_tasks=3),
    )
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    shared = next(problem.torso.parameters())

    def overflowing(batch: int) -> Tensor:
        root = (shared * 0).square().sum().sqrt()  # 0, with a gradient of 0 / 0
        return torch.stack(problem.losses(batch)) + root

    mtl_step(combiner, problem.losses, problem.torso, optimizer, scaler=scaler)
    before = {key: value.clone() for key, value in combiner.state_dict().items()}
    refused = contextlib.nullcontext() if scaled else pytest.raises(ValueError, match="non-finite gradient")
    with refused:
        mtl_step(combiner, overflowing, problem.torso, optimizer, scaler=scaler)
    after = combiner.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@trains_the_torso_alone
@pytest.mark.parametrize("scaled", [False, True], ids=["refused", "skipped"])
@pytest.mark.parametrize("base", ["cagrad", "momentum"])
def test_losses_that_are_not_finite_at_moved_parameters_leave_the_methods_state_alone(
    base: str, scaled: bool
) -> None:
    problem, combiner = Problem(), make_combiner("fs_mtl", num_tasks=TASKS, base=base)
    optimizer = torch.optim.SGD(problem.torso.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    mtl_step(combiner, problem.losses, problem.torso, optimizer, scaler=scaler)
    before, values, calls = copy.deepcopy(combiner.state_dict()), problem.values(), len(problem.calls)

    def losses(batch: int) -> Tensor:
        found = torch.stack(problem.losses(batch))
        return found * math.nan if len(problem.calls) == calls + 2 else found

    refused = contextlib.nullcontext() if scaled else pytest.raises(ValueError, match="no step was taken")
    with refused:
        mtl_step(combiner, losses, problem.torso, optimizer, scaler=scaler)
    torch.testing.assert_close(combiner.state_dict(), before, rtol=0.0, atol=0.0)
    assert torch.equal(problem.values(), values)


def test_with_a_scaler_an_overflow_after_the_step_is_passed_over() -> None:
    problem, combiner = Problem(), make_combiner("famo", num_tasks=TASKS)
    optimizer, scaler = torch.optim.SGD(problem.parameters, lr=0.1), torch.amp.GradScaler("cpu")

    def losses(batch: int) -> Tensor:
        found = torch.stack(problem.losses(batch))
        return found * math.inf if len(problem.calls) == 2 else found

    for learns in (False, True):
        before, xi = problem.values(), combiner.state_dict()["xi.value"].clone()
        mtl_step(combiner, losses, problem.torso, optimizer, heads=problem.heads, scaler=scaler)
        assert not torch.equal(problem.values(), before)
        assert torch.equal(combiner.state_dict()["xi.value"], xi) != learns


def test_wrong_heads_are_refused() -> None:
    problem = Problem()
    optimizer = torch.optim.SGD(problem.parameters, lr=0.1)
    with pytest.raises(ValueError, match="heads must be one per task, 3; found 2"):
        mtl_step(
            make_combiner("mean", num_tasks=3),
            problem.losses(),
            problem.torso,
            optimizer,
            heads=problem.heads[:2],
        )
