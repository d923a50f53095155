"""Buffers of models, such as running statistics, in mtl_step: they move once per step, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
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


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", ["famo", "fs_mtl", "cagrad"])
def test_what_a_checkpoint_runs_again_moves_no_buffers(name: str, batched: bool) -> None:
    model, expected = _Normalised(), _Normalised()
    for number in range(2):  # one forward pass for each of two pieces
        expected.norm(expected.first(INPUTS[number:]))
    optimizer, combiner = torch.optim.SGD(model.parameters(), lr=0.1), make_combiner(name, num_tasks=TASKS)
    mtl_step(
        combiner, lambda b: (model(INPUTS[b:]) - TARGETS[b:]).square().mean(0), model, optimizer,
        batched=batched, micro_batches=2,
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
