"""Buffers of models, such as running statistics, in mtl_step: they move once per step, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from mtrl import mtl_step
from mtrl.combiners import make_combiner

D = torch.float64
INPUTS = torch.linspace(-1.0, 1.0, 64, dtype=D).view(32, 2)
TARGETS = torch.stack((INPUTS.sum(1), 3.0 * INPUTS[:, 0], INPUTS.prod(1) + 1.0), dim=1)
TASKS = 3


def _losses(model: nn.Module, inputs: Tensor) -> Tensor:
    result: Tensor = (model(inputs) - TARGETS[: len(inputs)]).square().mean(0)
    return result


class _Normalised(nn.Module):
    """Normalises under a checkpoint, whose backward pass runs the normalisation again; a part is unused."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last, self.unused = nn.Linear(2, 4), nn.Linear(4, TASKS), nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.norm, self.first(x), use_reentrant=False)
        result: Tensor = self.last(torch.tanh(hidden))
        return result


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("name", ["famo", "fs_mtl", "cagrad"])
def test_what_a_checkpoint_runs_again_moves_no_buffers(name: str, chunk_size: int | None) -> None:
    model, expected = _Normalised(), _Normalised()
    for number in range(2):  # one forward pass for each of two pieces
        expected.norm(expected.first(INPUTS[number:]))
    optimizer, combiner = torch.optim.SGD(model.parameters(), lr=0.1), make_combiner(name, num_tasks=TASKS)
    mtl_step(
        combiner, lambda b: (model(INPUTS[b:]) - TARGETS[b:]).square().mean(0), model, optimizer,
        chunk_size=chunk_size, micro_batches=2,
    )  # fmt: skip
    for found, wanted in zip(model.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("name", "bad"), [("cagrad", 0), ("mean", 0), ("fs_mtl", 3), ("modo", 2)])
def test_a_refused_step_leaves_buffers_as_they_were(name: str, bad: int) -> None:
    """Evaluation `bad` gets a NaN, which spoils running statistics; 1 looks for checkpoints."""
    model = _Normalised()
    before = [buffer.clone() for buffer in model.buffers()]
    calls: list[int] = []

    def losses(batch: int) -> Tensor:
        calls.append(batch)
        return _losses(model, INPUTS if len(calls) != bad + 1 else INPUTS * torch.nan)

    optimizer, combiner = torch.optim.SGD(model.parameters(), lr=0.1), make_combiner(name, num_tasks=TASKS)
    with pytest.raises(ValueError, match="no step was taken"):
        mtl_step(combiner, losses, model, optimizer)
    assert all(torch.equal(now, old) for now, old in zip(model.buffers(), before, strict=True))


class _Cached(nn.Module):
    """Keeps a table of positions as long as its longest input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(2, TASKS).double()
        self.register_buffer("positions", torch.zeros(1, dtype=D))
        self.positions: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if len(self.positions) < len(x):
            self.positions = torch.linspace(0.0, 1.0, len(x), dtype=D)
        result: Tensor = self.layer(x) + self.positions[: len(x)].unsqueeze(1)
        return result


@pytest.mark.parametrize("name", ["famo", "fs_mtl", "modo", "cagrad"])
def test_buffers_that_grow_with_the_input_are_those_of_the_first_evaluation(name: str) -> None:
    model = _Cached()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    combiner = make_combiner(name, num_tasks=TASKS)
    for length in (10, 20):
        mtl_step(combiner, lambda b, n=length: _losses(model, INPUTS[: n + b]), model, optimizer)  # type: ignore[misc]
        assert len(model.positions) == length


class _Remembering(nn.Module):
    """Its buffers are its last input, an expanded tensor, and one that it makes when it is first needed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.Linear(2, TASKS).double()
        self.register_buffer("last", torch.zeros(8, 2, dtype=D))
        self.register_buffer("shift", torch.ones(1, dtype=D).expand(TASKS))
        self.register_buffer("made", None)
        self.last: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.made = x.mean(0)
        result: Tensor = self.layer(x) + self.shift
        return result


@pytest.mark.parametrize("name", ["modo", "famo", "cagrad"])
def test_an_input_that_becomes_a_buffer_keeps_its_numbers(name: str) -> None:
    model, inputs = _Remembering(), INPUTS.clone()
    optimizer, combiner = torch.optim.SGD(model.parameters(), lr=0.1), make_combiner(name, num_tasks=TASKS)
    mtl_step(combiner, lambda b: _losses(model, inputs[8 * b : 8 * b + 8]), model, optimizer)
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(model.last, INPUTS[:8])
    with pytest.raises(ValueError, match="no step was taken"):
        mtl_step(combiner, lambda b: _losses(model, inputs[8:16] * torch.nan), model, optimizer)
    assert torch.equal(model.last, INPUTS[:8])
    assert torch.equal(inputs, INPUTS)


def test_a_buffer_that_a_refused_step_made_is_gone() -> None:
    model = _Remembering()
    optimizer, combiner = torch.optim.SGD(model.parameters(), lr=0.1), make_combiner("mean", num_tasks=TASKS)
    with pytest.raises(ValueError, match="no step was taken"):
        mtl_step(combiner, lambda b: _losses(model, INPUTS * torch.nan), model, optimizer)
    assert model.made is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_running_statistics_of_a_scripted_module_move_once() -> None:
    norm = nn.BatchNorm1d(TASKS).double()
    model = torch.jit.script(nn.Sequential(nn.Linear(2, TASKS).double(), norm))
    optimizer, combiner = torch.optim.SGD(model.parameters(), lr=0.1), make_combiner("famo", num_tasks=TASKS)
    with torch.no_grad():
        expected = 0.1 * model[0](INPUTS).mean(0)
    mtl_step(combiner, lambda b: _losses(model, INPUTS), model, optimizer)
    torch.testing.assert_close(model[1].running_mean, expected)


class _Gated(nn.Module):
    """A buffer decides its output, and each forward pass in training moves this buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, TASKS).double()
        self.register_buffer("gate", torch.ones((), dtype=D))
        self.gate: Tensor

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) * self.gate.clone()
        with torch.no_grad():
            self.gate.mul_(1.5)
        return result


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("name", ["fs_mtl", "famo", "mean", "cagrad_fast"])
def test_all_evaluations_of_a_batch_see_the_same_buffers(name: str, micro_batches: int) -> None:
    model, seen = _Gated(), set()
    optimizer, combiner = torch.optim.SGD(model.parameters(), lr=0.1), make_combiner(name, num_tasks=TASKS)

    def losses(batch: int) -> Tensor:
        seen.add((batch, model.gate.item()))
        return _losses(model, INPUTS)

    mtl_step(combiner, losses, model, optimizer, micro_batches=micro_batches)
    assert seen == {(batch, 1.5**batch) for batch in range(micro_batches)}
    assert model.gate.item() == 1.5**micro_batches


class _Holding(_Normalised):
    """Holds its combiner, if it is `inside`, and an average of its last layer, which an optimiser moves."""

    def __init__(self, name: str, *, inside: bool) -> None:
        super().__init__()
        self.average = AveragedModel(self.last).requires_grad_(False)
        self.combiners = [make_combiner(name, num_tasks=TASKS)]
        if inside:
            self.inside = self.combiners[0]
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.optimizer.register_step_post_hook(lambda *_: self.average.update_parameters(self.last))

    def train_on(self, steps: int) -> None:
        for _ in range(steps):
            mtl_step(self.combiners[0], lambda b: _losses(self, INPUTS), self, self.optimizer)


@pytest.mark.parametrize("name", ["famo", "momentum", "uw", "fs_mtl", "turns"])
def test_a_combiner_within_the_model_learns_as_one_outside(name: str) -> None:
    inside, outside = (_Holding(name, inside=inside) for inside in (True, False))
    for model in (inside, outside):
        model.train_on(3)
    torch.testing.assert_close(dict(inside.named_parameters()), dict(outside.named_parameters()))
    torch.testing.assert_close(inside.inside.state_dict(), outside.combiners[0].state_dict())


@pytest.mark.parametrize("name", ["cagrad", "famo", "fs_mtl"])
def test_what_a_hook_of_the_optimiser_writes_to_buffers_stays(name: str) -> None:
    model, values = _Holding(name, inside=False), []
    model.optimizer.register_step_post_hook(lambda *_: values.append(model.last.weight.detach().clone()))
    model.train_on(3)
    assert model.average.state_dict()["n_averaged"].item() == 3
    torch.testing.assert_close(model.average.state_dict()["module.weight"], torch.stack(values).mean(0))
    assert model.norm.state_dict()["num_batches_tracked"].item() == 3


@pytest.mark.parametrize("name", ["mean", "famo", "fs_mtl"])
def test_a_buffer_that_is_a_view_of_a_parameter_moves_with_it(name: str) -> None:
    plain, viewed = _Normalised(), _Normalised()
    viewed.register_buffer("view", viewed.last.weight.detach()[1:])
    for model in (plain, viewed):
        combiner, optimizer = make_combiner(name, num_tasks=TASKS), torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            mtl_step(combiner, lambda b, m=model: _losses(m, INPUTS), model, optimizer)  # type: ignore[misc]
    torch.testing.assert_close(dict(viewed.named_parameters()), dict(plain.named_parameters()))
    assert torch.equal(viewed.get_buffer("view"), viewed.last.weight[1:])


@pytest.mark.parametrize("name", ["nash_mtl", "famo"])
def test_an_overflow_in_the_gradients_that_are_there_skips_the_step(name: str) -> None:
    """A penalty has overflowed: neither parameters nor buffers nor the method's state move."""
    combiner = make_combiner(name, num_tasks=2)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    inputs = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def losses(batch: int) -> Tensor:
        result: Tensor = (model(inputs) - torch.arange(2.0).double()).square().mean(dim=0)
        return result

    def everything() -> list[Tensor]:
        return [value.clone() for part in (model, combiner) for value in part.state_dict().values()]

    mtl_step(combiner, losses, model, optimizer, scaler=scaler)
    optimizer.zero_grad()
    next(model.parameters()).grad = torch.full((2,), torch.inf, dtype=torch.float64)
    before = everything()
    mtl_step(combiner, losses, model, optimizer, accumulate=True, scaler=scaler)
    assert all(torch.equal(new, old) for new, old in zip(everything(), before, strict=True))
    assert scaler.get_scale() == 4.0
