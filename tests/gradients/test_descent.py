"""One descent step on small problems: what methods may ask of it, and what a non-finite step must leave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import mtl_step
from mtrl.combiners import COMBINERS, LossCombiner, make_combiner
from mtrl.gradients.descent import Descent
from mtrl.gradients.per_task import FlatParameters, TaskGradients
from tests.helpers.loss_methods import sac_options

TASKS, SHARED, HEAD = 3, 6, 2


class Problem:
    """Losses |w - a_t|^2 + |w_1 h_t - b_t|^2 of shared w and a head row h_t per task; counts evaluations."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.start = torch.randn(SHARED, generator=generator)
        self.heads = torch.randn(TASKS, HEAD, generator=generator)
        self.centres = torch.tensor([[1.0], [30.0], [0.1]]) * torch.randn(TASKS, SHARED, generator=generator)
        self.targets = torch.randn(TASKS, HEAD, generator=generator)
        self.with_gradient: list[bool] = []
        self.bad: dict[int, float] = {}  # number of the evaluation, counted from 0 -> value of task 1's loss

    def losses(self, shared: Tensor, heads: Tensor, tasks: Tensor | None = None) -> Tensor:
        chosen = torch.arange(TASKS) if tasks is None else tasks
        fit = (shared[..., :1] * heads - self.targets[chosen]).square().sum(-1)
        return (shared - self.centres[chosen]).square().sum(-1) + fit

    def __call__(
        self, parameters: Mapping[str, Tensor], batch: int, tasks: Tensor | None
    ) -> tuple[Tensor, None]:
        result = self.losses(parameters["w"], parameters["h"], tasks)
        factors = torch.tensor([1.0, self.bad.get(len(self.with_gradient), 1.0), 1.0])
        self.with_gradient.append(result.requires_grad)
        return result * (factors if tasks is None else factors[tasks]), None

    def learner(self, method: str, *, lr: float = 0.01, **options: Any) -> Descent:
        flat = FlatParameters({"w": self.start.clone()}, {"h": self.heads.clone()})
        combiner = make_combiner(method, num_tasks=TASKS, **sac_options(method), **options)
        return Descent(flat, combiner, lr=lr, eps=1e-8, max_norm=1.0)


@pytest.mark.parametrize("method", sorted(n for n, cls in COMBINERS.items() if issubclass(cls, LossCombiner)))
def test_methods_that_read_losses_alone_never_form_a_jacobian(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: TaskGradients, offset: Tensor | None = None, batch: int = 0) -> Tensor:
        raise AssertionError("a Jacobian was asked for")

    monkeypatch.setattr(TaskGradients, "__call__", refuse)
    problem = Problem()
    problem.learner(method).step(problem)
    again = COMBINERS[method].looks_again
    assert problem.with_gradient == [True, False] if again else [True]


@pytest.mark.parametrize("hook", ["_combine", "direction"])
@pytest.mark.parametrize(
    ("method", "options"), [("mean", {}), ("cagrad", {}), ("sdmgrad", {}), ("every", {"refresh_every": 1})]
)
def test_a_method_of_ones_own_means_the_same_in_training_and_in_mtl_step(
    method: str, options: dict[str, Any], hook: str
) -> None:
    base, problem = COMBINERS[method], Problem()
    halved = type("Halved", (base,), {hook: lambda self, *given: 0.5 * getattr(base, hook)(self, *given)})

    def losses(parameters: Mapping[str, Tensor], *_: object) -> tuple[Tensor, None]:
        return problem.losses(parameters["w"], problem.heads), None

    norms, moves = [], []
    for cls in (base, halved):
        flat = FlatParameters({"w": problem.start.clone()}, {})
        learner = Descent(flat, cls(num_tasks=TASKS, **options), lr=0.01, eps=1e-8, max_norm=None)
        norms.append(learner.step(losses).gradient_norm)
        w = nn.Parameter(problem.start.clone())
        own = losses({"w": w})[0]
        mtl_step(cls(num_tasks=TASKS, **options), own, w, torch.optim.SGD([w], lr=1.0))
        moves.append(problem.start - w.detach())
    torch.testing.assert_close(2.0 * norms[1], norms[0])
    torch.testing.assert_close(2.0 * moves[1], moves[0])


def test_famo_learns_from_the_losses_after_the_step_on_the_same_batch() -> None:
    problem = Problem()
    learner = problem.learner("famo")
    seen: list[Tensor] = []
    notice = learner.combiner._after_step
    learner.combiner._after_step = lambda losses: (seen.append(losses), notice(losses))[1]  # type: ignore[method-assign, func-returns-value]
    learner.step(problem)
    moved = learner.flat.named()
    torch.testing.assert_close(seen[0], problem.losses(moved["w"], moved["h"]))
    weights = learner.combiner.last_weights.clone()
    learner.combiner.reset()
    learner.step(problem)
    assert learner.combiner.state_dict()["xi.value"].abs().min() > 0.0
    learner.step(problem)
    assert not torch.equal(learner.combiner.last_weights, weights)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("method", "options"), [("famo", {}), ("blocks", {"base": "famo"})])
def test_a_non_finite_second_look_is_flagged(method: str, options: dict[str, Any], bad: float) -> None:
    problem = Problem()
    learner = problem.learner(method, **options)
    problem.bad = {1: bad}
    learner.step(problem)
    assert learner.failures.tolist() == [False, True, False]


@pytest.mark.parametrize("method", sorted(COMBINERS))
def test_a_non_finite_step_is_flagged_with_its_task_and_a_finite_one_is_not(method: str) -> None:
    problem = Problem()
    learner = problem.learner(method)
    for _ in range(2):
        learner.step(problem, torch.ones(TASKS))
    assert not learner.failures.any()
    start = len(problem.with_gradient)
    problem.bad = dict.fromkeys(range(start, start + TASKS), math.nan)
    for _ in range(TASKS):  # some methods evaluate one task per step
        if not learner.failures.any():
            learner.step(problem, torch.ones(TASKS))
    assert learner.failures.tolist() == [False, True, False]


@pytest.mark.parametrize("method", ["cagrad", "pcgrad"])
def test_a_gradient_that_overflows_behind_a_finite_loss_is_flagged(method: str) -> None:
    learner = Problem().learner(method)

    def losses(parameters: Mapping[str, Tensor], _: int, tasks: Tensor | None) -> tuple[Tensor, None]:
        squares = parameters["w"].square().sum(-1).expand(TASKS) + parameters["h"].square().sum(-1)
        root = (parameters["w"][..., 0].expand(TASKS) * 0.0).sqrt()  # its slope at 0 is infinite
        return squares + root * torch.tensor([0.0, 1.0, 0.0]), None

    learner.step(losses)
    assert learner.failures[1]


def test_norms_of_the_tasks_gradients_are_those_of_the_jacobian() -> None:
    for method in ("cagrad", "pcgrad", "mean"):
        problem = Problem()
        rows = TaskGradients(problem.learner("mean").flat, problem, TASKS, {})
        expected = rows().norm(dim=1)
        found = problem.learner(method).step(problem).task_norms
        if method == "mean":
            assert found is None
        else:
            torch.testing.assert_close(found, expected)


def adatask_reference(problem: Problem, lrs: list[float], reduction: str) -> tuple[Tensor, Tensor]:
    """Adam per task on the shared parameters from one point, one Adam on each head."""
    shared, heads = problem.start.clone(), problem.heads.clone().requires_grad_()
    moves = [torch.zeros(SHARED, requires_grad=True) for _ in range(TASKS)]
    adams = [torch.optim.Adam([move], eps=1e-8) for move in moves]
    head_adam = torch.optim.Adam([heads], eps=1e-8)
    for lr in lrs:
        point = shared.requires_grad_()
        losses = problem.losses(point, heads)
        gradients = [torch.autograd.grad(loss, (point, heads), retain_graph=True) for loss in losses]
        for move, adam, (own, _) in zip(moves, adams, gradients, strict=True):
            adam.param_groups[0]["lr"] = lr
            move.grad = own
            adam.step()
        moved = torch.stack([move.detach() for move in moves])
        total = moved.sum(0) if reduction == "sum" else moved.mean(0)
        head_adam.param_groups[0]["lr"] = lr
        heads.grad = torch.stack([head for _, head in gradients]).sum(0)
        head_adam.step()
        shared = problem.start + total
    return shared.detach(), heads.detach()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_adatask_steps_are_taken_as_they_are(reduction: str) -> None:
    """No other Adam, no bound on the norm; the learning rate may change; heads have an Adam of their own."""
    problem = Problem()
    learner = problem.learner("adatask")
    learner.combiner.reduction = reduction  # type: ignore[assignment]
    lrs = [0.01] * 10 + [0.003] * 10
    for lr in lrs:
        learner.optimizer.param_groups[0]["lr"] = lr
        learner.step(problem)
    shared, heads = adatask_reference(problem, lrs, reduction)
    ours = learner.flat.named()
    torch.testing.assert_close(ours["w"], shared, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours["h"], heads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adaptive", [False, True])
def test_fs_mtl_moves_heads_in_a_ball_of_their_own_and_takes_their_gradients_there(adaptive: bool) -> None:
    problem, rho = Problem(), 0.3
    flat = FlatParameters({"w": problem.start.clone()}, {"h": problem.heads.clone()})
    combiner = make_combiner("fs_mtl", num_tasks=TASKS, base="mean", rho=rho, adaptive=adaptive)
    gradients = TaskGradients(flat, problem, TASKS, {})
    direction = combiner.direction(gradients)

    def ascended(value: Tensor, gradient: Tensor) -> Tensor:
        scale = value.abs() if adaptive else torch.ones_like(value)
        step: Tensor = rho * scale * scale * gradient / (scale * gradient).norm()
        return value + step

    shared, heads = problem.start.clone().requires_grad_(), problem.heads.clone().requires_grad_()
    total = torch.zeros(SHARED)
    for task in range(TASKS):
        at_start = torch.autograd.grad(problem.losses(shared, heads)[task], (shared, heads))
        moved = problem.heads.clone()
        moved[task] = ascended(problem.heads[task], at_start[1][task])
        points = (ascended(problem.start, at_start[0]).requires_grad_(), moved.requires_grad_())
        there = torch.autograd.grad(problem.losses(*points)[task], points)
        total += there[0]
        torch.testing.assert_close(gradients.head_gradient.view(TASKS, HEAD)[task], there[1][task])
    # The mean of the gradients plus the mean of their change: the mean of the gradients there.
    torch.testing.assert_close(direction, total / TASKS, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flat.named()["h"], problem.heads, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("method", sorted(n for n, cls in COMBINERS.items() if cls.row_state))
def test_state_of_the_size_of_the_parameters_is_made_before_the_first_step(method: str) -> None:
    problem = Problem()
    learner = problem.learner(method)
    places = {key: value.data_ptr() for key, value in learner.named_buffers()}
    shapes = [learner.combiner.get_buffer(name).shape for name in learner.combiner.row_state]
    assert shapes == [(TASKS, SHARED)] * len(shapes)
    learner.step(problem)
    assert {key: value.data_ptr() for key, value in learner.named_buffers()} == places


def test_weight_decay_is_that_of_adamw() -> None:
    problem = Problem()
    flat = FlatParameters({"w": problem.start.clone()}, {"h": problem.heads.clone()})
    combiner = make_combiner("mean", num_tasks=TASKS)
    learner = Descent(flat, combiner, lr=0.01, eps=1e-8, max_norm=None, weight_decay=0.1)
    shared, heads = problem.start.clone().requires_grad_(), problem.heads.clone().requires_grad_()
    plain = torch.optim.AdamW([shared, heads], lr=0.01, eps=1e-8, weight_decay=0.1)
    for _ in range(5):
        learner.step(problem)
        losses = problem.losses(shared, heads)
        (shared.grad,) = torch.autograd.grad(losses.mean(), shared, retain_graph=True)
        (heads.grad,) = torch.autograd.grad(losses.sum(), heads)  # each head follows its own task's loss
        plain.step()
    torch.testing.assert_close(flat.named()["w"], shared.detach())
    torch.testing.assert_close(flat.named()["h"], heads.detach())


@pytest.mark.parametrize("method", ["mean", "cagrad", "famo", "adatask"])
def test_the_end_of_the_vector_may_be_spared_the_decay_whatever_the_method(method: str) -> None:
    problem, decayed = Problem(), SHARED + 2 * HEAD  # the last task's head is spared
    start, moved = torch.cat((problem.start, problem.heads.flatten())), []
    for decay in (0.0, 0.5):
        flat = FlatParameters({"w": problem.start.clone()}, {"h": problem.heads.clone()})
        combiner = make_combiner(method, num_tasks=TASKS)
        settings = {"lr": 0.01, "eps": 1e-8, "max_norm": None, "undecayed": HEAD}
        Descent(flat, combiner, weight_decay=decay, **settings).step(problem)  # type: ignore[arg-type]
        moved.append(flat.vector.detach().clone())
    torch.testing.assert_close(moved[0][:decayed] - moved[1][:decayed], 0.01 * 0.5 * start[:decayed])
    assert torch.equal(moved[0][decayed:], moved[1][decayed:])


@pytest.mark.parametrize("method", ["mean", "cagrad", "famo"])
def test_a_network_may_move_its_parameters_back_after_each_step(method: str) -> None:
    """Also before a method looks at the losses again."""
    problem = Problem()
    flat = FlatParameters({"w": problem.start.clone()}, {"h": problem.heads.clone()})
    seen: list[float] = []

    def unit(parameters: Mapping[str, Tensor]) -> None:
        parameters["w"].div_(parameters["w"].norm())

    def losses(parameters: Mapping[str, Tensor], batch: int, tasks: Tensor | None) -> tuple[Tensor, None]:
        if not parameters["w"].requires_grad:
            seen.append(float(parameters["w"].norm()))
        return problem(parameters, batch, tasks)

    combiner = make_combiner(method, num_tasks=TASKS, **sac_options(method))
    learner = Descent(flat, combiner, lr=0.01, eps=1e-8, max_norm=1.0, project=unit)
    learner.step(losses)
    assert float(flat.named()["w"].norm()) == pytest.approx(1.0)
    assert seen == ([pytest.approx(1.0)] if combiner.looks_again else [])
