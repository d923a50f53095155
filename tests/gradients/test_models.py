"""mtl_step and task_jacobian on models that are not plain layers, against plain torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtrl import mtl_step, set_gradient, task_jacobian
from mtrl.combiners import make_combiner

D = torch.float64
INPUTS = torch.linspace(-1.0, 1.0, 64, dtype=D).view(32, 2)
TARGETS = torch.stack((INPUTS.sum(1), 3.0 * INPUTS[:, 0], INPUTS.prod(1) + 1.0), dim=1)
TASKS = 3


def _losses(model: nn.Module, inputs: Tensor = INPUTS) -> Tensor:
    result: Tensor = (model(inputs) - TARGETS[: len(inputs)]).square().mean(0)
    return result


class _Transposed(nn.Module):
    """A weight whose memory is laid out by columns, one that is a permuted view, and a 4-D one."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(2, 5, generator=generator).T)
        self.second = nn.Parameter(torch.randn(5, 1, 3, 1, generator=generator).permute(2, 1, 0, 3))
        self.last = nn.Parameter(
            torch.randn(3, 2, 2, 2, generator=generator).to(memory_format=torch.channels_last)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.first.T) @ self.second[:, 0, :, 0].T
        return hidden + self.last.sum(dim=(1, 2, 3)) * x[:, :1]


@pytest.mark.parametrize("name", ["mean", "cagrad", "m_config"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_optimisers_get_gradients_in_the_layout_of_the_parameters(optimizer: Any, name: str) -> None:
    inputs, targets = INPUTS.float(), TARGETS.float()
    models = [_Transposed() for _ in range(2)]
    for model, fused in zip(models, (True, False), strict=True):
        step = optimizer(model.parameters(), lr=0.1, fused=fused)
        combiner = make_combiner(name, num_tasks=TASKS)
        for _ in range(3):
            mtl_step(combiner, lambda b, m=model: (m(inputs) - targets).square().mean(0), model, step)  # type: ignore[misc]
        assert all(p.grad is None or p.grad.stride() == p.stride() for p in model.parameters())
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_written_direction_keeps_strides_and_entries() -> None:
    weight = nn.Parameter(torch.randn(2, 3, dtype=D).T)
    direction = torch.arange(6.0, dtype=D)
    for accumulate in (False, True):
        set_gradient(weight, direction, accumulate=accumulate)
        assert weight.grad is not None
        assert weight.grad.stride() == weight.stride()
        assert torch.equal(weight.grad, direction.view(3, 2) * (1 + accumulate))


def _dropped(rate: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Dropout(rate), nn.Linear(40, TASKS)).double()


def test_fs_mtl_moves_parameters_and_nothing_else_under_dropout() -> None:
    """With the mean as base the direction is the mean of the tasks' SAM gradients, all under one mask."""
    model, rho = _dropped(), 0.1
    shared = list(model.parameters())
    mask = torch.get_rng_state()
    expected = []
    for task in range(TASKS):
        moved = copy.deepcopy(model)
        torch.set_rng_state(mask)
        gradients = torch.autograd.grad(_losses(moved)[task], list(moved.parameters()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        with torch.no_grad():
            for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                parameter.add_(rho * gradient / norm)
        torch.set_rng_state(mask)
        there = torch.autograd.grad(_losses(moved)[task], list(moved.parameters()))
        expected.append(torch.cat([g.flatten() for g in there]))
        after = torch.get_rng_state()
    torch.set_rng_state(mask)
    combiner = make_combiner("fs_mtl", num_tasks=TASKS, base="mean", rho=rho)
    before = torch.cat([p.detach().flatten() for p in shared])
    mtl_step(combiner, lambda b: _losses(model), model, torch.optim.SGD(shared, lr=1.0))
    moves = before - torch.cat([p.detach().flatten() for p in shared])
    torch.testing.assert_close(moves, torch.stack(expected).mean(0))
    assert torch.equal(torch.get_rng_state(), after)  # later draws do not depend on the method


@pytest.mark.parametrize("name", ["famo", "cagrad_fast", "fs_mtl", "mean"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_each_batch_has_one_mask_within_a_step_and_another_in_the_next(name: str, micro_batches: int) -> None:
    model = _dropped()
    masks: dict[tuple[int, int], list[Tensor]] = {}  # by step and batch
    now = (0, 0)
    model[2].register_forward_hook(
        lambda module, given, output: masks.setdefault(now, []).append(output.detach() == 0)
    )
    optimizer, combiner = torch.optim.SGD(model.parameters(), lr=0.0), make_combiner(name, num_tasks=TASKS)
    for step in range(2):

        def losses(batch: int, step: int = step) -> Tensor:
            nonlocal now
            now = (step, batch)
            return _losses(model)

        mtl_step(combiner, losses, model, optimizer, micro_batches=micro_batches)
    assert all(torch.equal(mask, own[0]) for own in masks.values() for mask in own)
    firsts = [own[0] for own in masks.values()]
    assert len(firsts) == 2 * micro_batches
    assert not any(torch.equal(a, b) for i, a in enumerate(firsts) for b in firsts[:i])


@pytest.mark.parametrize("name", ["famo", "fs_mtl", "cagrad"])
def test_a_block_of_autocast_may_be_around_the_step(name: str) -> None:
    """It keeps casts of the parameters until its end, here beyond the step."""
    after = []
    for outside in (True, False):
        torch.manual_seed(0)
        model, inputs, targets = nn.Linear(2, TASKS), INPUTS.float(), TARGETS.float()

        def losses(_: int, model: nn.Module = model, inside: bool = not outside) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
                found: Tensor = (model(inputs).float() - targets).square().mean(0)  # noqa: B023
                return found

        combiner = make_combiner(name, num_tasks=TASKS)
        step = torch.optim.SGD(model.parameters(), lr=0.3)
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            after.append([mtl_step(combiner, losses, model, step) for _ in range(3)])
        after[-1] += [model.weight.detach(), combiner.last_weights]
    torch.testing.assert_close(after[0], after[1])


def test_methods_multiply_in_full_precision_within_a_block_of_autocast() -> None:
    rows = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    rows[1] = 0.05 * rows[1] - rows[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = make_combiner("cagrad", num_tasks=3).combine(rows)
    expected = make_combiner("cagrad", num_tasks=3).combine(rows.double())
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=1e-4)


def _adamw(decay: float, **options: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=decay, **options)


def test_an_optimiser_of_its_own_honours_decoupled_decay_and_maximize() -> None:
    moves = {}
    makers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "plain": _adamw(0.0),
        "decay": _adamw(0.1),
        "up": _adamw(0.0, maximize=True),
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, weight_decay=0.1),
        "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.01, weight_decay=0.1),
    }
    for key, make in makers.items():
        torch.manual_seed(0)
        model = nn.Linear(2, TASKS).double()
        before = model.weight.detach().clone()
        combiner = make_combiner("adatask", num_tasks=TASKS)
        mtl_step(combiner, lambda b, m=model: _losses(m), model, make(model.parameters()))  # type: ignore[misc]
        moves[key] = before - model.weight.detach()
    torch.testing.assert_close(moves["up"], -moves["plain"])
    torch.testing.assert_close(moves["decay"] - moves["plain"], 0.01 * 0.1 * before)
    torch.testing.assert_close(moves["sgd"], moves["decay"])
    torch.testing.assert_close(moves["adafactor"], moves["decay"])


def test_an_optimiser_of_its_own_refuses_decay_that_belongs_into_gradients() -> None:
    model = nn.Linear(2, TASKS).double()
    step = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    combiner = make_combiner("adatask", num_tasks=TASKS)
    with pytest.raises(ValueError, match=r"adatask is an optimiser of its own.*use AdamW or weight_decay=0"):
        mtl_step(combiner, lambda b: _losses(model), model, step)
    with pytest.raises(ValueError, match="accumulate=True cannot add others"):
        mtl_step(combiner, lambda b: _losses(model), model, step, accumulate=True)


class Adafactor(torch.optim.SGD):
    """Finds its learning rate by itself, as the class of this name in transformers does."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.param_groups[0]["lr"] = None


def test_an_optimiser_of_its_own_needs_a_learning_rate() -> None:
    model, combiner = nn.Linear(2, TASKS).double(), make_combiner("adatask", num_tasks=TASKS)
    with pytest.raises(
        ValueError, match="learning rate from Adafactor, where it must be a number; found None"
    ):
        mtl_step(combiner, lambda b: _losses(model), model, Adafactor(model.parameters()))


@pytest.mark.parametrize("name", ["mean", "cagrad", "uw"])
def test_losses_given_for_several_micro_batches_are_refused(name: str) -> None:
    model = nn.Linear(2, TASKS).double()
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        ValueError, match="micro_batches=3 takes the losses of several batches: pass a function"
    ):
        mtl_step(make_combiner(name, num_tasks=TASKS), _losses(model), model, step, micro_batches=3)


def _hooked(model: nn.Module) -> Callable[[], Tensor]:
    next(model.parameters()).register_hook(lambda gradient: print(end=str(gradient.sum().item())[:0]))
    return lambda: _losses(model)


def _checkpointed(model: nn.Module) -> Callable[[], Tensor]:
    def losses() -> Tensor:
        torch.manual_seed(5)
        hidden = checkpoint(model[:3], INPUTS, use_reentrant=False)  # type: ignore[index]
        return (model[3](hidden) - TARGETS).square().mean(0)  # type: ignore[index, no-any-return]

    return losses


@pytest.mark.parametrize("made", [_hooked, _checkpointed])
def test_what_vmap_refuses_works_in_ordinary_backward_passes_as_the_error_says(made: Any) -> None:
    model = _dropped()
    reference = copy.deepcopy(model)
    losses = made(model)
    torch.manual_seed(5)
    plain = _losses(reference)
    expected = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(reference.parameters()), retain_graph=True)]
        )
        for loss in plain
    ]
    torch.manual_seed(5)
    with pytest.raises(RuntimeError, match=r"chunk_size=1: one backward pass per task\. Torch says: "):
        task_jacobian(losses(), model)
    torch.manual_seed(5)
    torch.testing.assert_close(task_jacobian(losses(), model, chunk_size=1), torch.stack(expected))
    step = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="chunk_size=1"):
        mtl_step(make_combiner("cagrad", num_tasks=TASKS), lambda b: losses(), model, step)
    mtl_step(make_combiner("cagrad", num_tasks=TASKS), lambda b: losses(), model, step, chunk_size=1)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection_takes_one_backward_per_task_by_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, TASKS)).double()
    expected = task_jacobian(_losses(model), model)
    with torch.autograd.detect_anomaly():
        torch.testing.assert_close(task_jacobian(_losses(model), model), expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7])
def test_chunks_of_tasks_give_the_same_rows_by_as_many_passes(chunk_size: int) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, TASKS)).double()
    expected = task_jacobian(_losses(model), model)
    passes: list[int] = []
    losses = _losses(model)
    losses.register_hook(lambda gradient: passes.append(1))
    torch.testing.assert_close(task_jacobian(losses, model, chunk_size=chunk_size), expected)
    assert len(passes) == math.ceil(TASKS / chunk_size)
    twins = [copy.deepcopy(model) for _ in range(2)]
    for twin, size in zip(twins, (None, chunk_size), strict=True):
        step = torch.optim.SGD(twin.parameters(), lr=0.1)
        combiner = make_combiner("pcgrad", num_tasks=TASKS)
        mtl_step(combiner, lambda b, m=twin: _losses(m), twin, step, chunk_size=size)  # type: ignore[misc]
    for one, other in zip(twins[0].parameters(), twins[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", ["mean", "upgrad"])
def test_accumulate_adds_to_the_gradients_of_a_regulariser(name: str, scaled: bool) -> None:
    ours, plain = (nn.Linear(2, TASKS).double() for _ in range(2))
    plain.load_state_dict(ours.state_dict())
    steps = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (ours, plain)]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    penalty = ours.weight.square().sum()
    (penalty if scaler is None else scaler.scale(penalty)).backward()
    combiner = make_combiner(name, num_tasks=TASKS)
    mtl_step(
        combiner, lambda b: _losses(ours), ours, steps[0], accumulate=True, scaler=scaler, max_norm=0.5
    )  # fmt: skip
    set_gradient(plain, make_combiner(name, num_tasks=TASKS).combine(task_jacobian(_losses(plain), plain)))
    plain.weight.square().sum().backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    steps[1].step()
    torch.testing.assert_close(ours.weight, plain.weight)
    torch.testing.assert_close(ours.bias, plain.bias)


def test_accumulated_gradients_of_other_layers_count_in_the_bound() -> None:
    model, other = nn.Linear(2, TASKS).double(), nn.Linear(2, 2).double()
    parameters = [*model.parameters(), *other.parameters()]
    before = torch.cat([p.detach().flatten() for p in parameters])
    other.weight.grad = torch.full_like(other.weight, 100.0)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    combiner = make_combiner("mean", num_tasks=TASKS)
    mtl_step(combiner, lambda b: _losses(model), model, optimizer, accumulate=True, max_norm=1.0)
    moves = before - torch.cat([p.detach().flatten() for p in parameters])
    assert float(moves.norm()) == pytest.approx(1.0, rel=1e-6)


def test_by_hand_a_nan_loss_is_named_and_not_the_rows_that_it_spoils() -> None:
    model = nn.Linear(2, TASKS).double()
    losses = _losses(model) * torch.tensor([1.0, torch.nan, 1.0], dtype=D)
    rows = task_jacobian(losses, model)
    with pytest.raises(ValueError, match=r"losses has non-finite entries in tasks \[1\]"):
        make_combiner("cagrad", num_tasks=TASKS).combine(rows, losses)


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_weights_that_half_precision_cannot_hold_weigh_its_losses_all_the_same(size: float) -> None:
    """STCH weighs a loss of 1e-7 by 1e7, and the gradient of its logarithm is of order one."""
    torch.manual_seed(0)
    half, double = nn.Linear(3, 2).half(), nn.Linear(3, 2).double()
    double.load_state_dict(half.state_dict())
    x, scales = torch.randn(8, 3).half(), torch.tensor([1.0, 1e-3])
    for model in (half, double):
        inputs = x.to(model.weight.dtype)

        def losses(_: int, model: nn.Module = model, inputs: Tensor = inputs) -> Tensor:
            found: Tensor = size * model(inputs).square().mean(0) * scales.to(inputs)
            return found

        mtl_step(
            make_combiner("stch", num_tasks=2), losses, model, torch.optim.SGD(model.parameters(), lr=0.0)
        )
    found, expected = half.weight.grad, double.weight.grad
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


def test_a_weighted_gradient_beyond_half_precision_is_refused_as_such() -> None:
    model = nn.Linear(3, 2).half()
    before = model.weight.detach().clone()
    combiner = make_combiner("mean", num_tasks=2, weights=(1e6, 1e6))
    with pytest.raises(ValueError, match="weighted gradient exceeds float16: no step was taken"):
        mtl_step(
            combiner,
            lambda _: model(torch.ones(4, 3).half()).mean(0),
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
        )
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(("name", "micro_batches"), [("famo", 1), ("mean", 2)])
def test_losses_may_hold_derivatives_of_the_model(name: str, micro_batches: int) -> None:
    """As of a network that solves a differential equation, here u' = u with u(0) = 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def losses(batch: int) -> list[Tensor]:
        x = torch.linspace(0.0, 1.0, 9).unsqueeze(1).requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return [(slope - u).square().mean(), (u[0] - 1.0).square().sum()]

    combiner, step = make_combiner(name, num_tasks=2), torch.optim.Adam(model.parameters(), lr=0.01)
    first = mtl_step(combiner, losses, model, step, micro_batches=micro_batches)
    for _ in range(20):
        last = mtl_step(combiner, losses, model, step, micro_batches=micro_batches)
    assert last.sum() < first.sum()
    assert not last.requires_grad
