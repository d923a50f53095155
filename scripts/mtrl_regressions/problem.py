"""Six regressions that share one small network, and a run of one method on them.

Every target is a random network of 16 tanh units of 8 normal inputs, with mean 0 and variance 1. Batches are
drawn anew at each step, so no run can overfit. What a seed draws (targets, units, batches, initial
parameters) is the same for all methods.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl import mtl_step
from mtrl.combiners import make_combiner

TASKS, BATCH, INPUTS, TEACHER, WIDTH = 6, 32, 8, 16, 32
TEST = 1_000  # samples of each task on which errors are measured
WORST = 100.0  # an error counts as at most this, and that of a run that broke off as this


class Setting(NamedTuple):
    """A problem: whether targets are opposed, and the largest unit of a loss; the smallest one is 1."""

    opposed: bool
    largest: float


SETTINGS = {
    "equal": Setting(opposed=False, largest=1.0),
    "units": Setting(opposed=False, largest=1e3),
    "opposed": Setting(opposed=True, largest=1.0),
    "opposed, units": Setting(opposed=True, largest=1e3),
}


class Data(NamedTuple):
    """What a seed draws for a setting."""

    inputs: Tensor  # [N, T, B, I]
    targets: Tensor  # [N, T, B]
    test_inputs: Tensor  # [T, TEST, I]
    test_targets: Tensor  # [T, TEST]
    units: Tensor  # [T], factors of the losses


class Outcome(NamedTuple):
    """Test errors of a run, in units of each target's variance: 1 is what predicting the mean gives."""

    steps: list[int]  # K
    errors: list[list[float]]  # [K][T]
    failure: str  # why the run broke off; empty if it did not


@lru_cache(maxsize=4)
def draw(setting: Setting, seed: int, batches: int) -> Data:
    """Return the data of a seed: `batches` training batches of each task, and the test samples."""
    generator = torch.Generator().manual_seed(seed)
    number = TASKS // 2 if setting.opposed else TASKS
    first = torch.randn(number, INPUTS, TEACHER, generator=generator) / math.sqrt(INPUTS)
    last = torch.randn(number, TEACHER, 1, generator=generator)
    if setting.opposed:  # tasks 0 and 1 have opposite targets, and so have 2 and 3, 4 and 5
        signs = torch.tensor([1.0, -1.0]).repeat(number).view(-1, 1, 1)
        first, last = first.repeat_interleave(2, 0), last.repeat_interleave(2, 0) * signs

    def teach(inputs: Tensor) -> Tensor:
        return (torch.tanh(inputs @ first) @ last).squeeze(-1)

    probe = teach(torch.randn(TASKS, 20_000, INPUTS, generator=generator))
    center, spread = probe.mean(1, keepdim=True), probe.std(1, keepdim=True)
    order = torch.randperm(TASKS, generator=generator)
    units = torch.logspace(0.0, math.log10(setting.largest), TASKS)[order]
    inputs = torch.randn(batches, TASKS, BATCH, INPUTS, generator=generator)
    test = torch.randn(TASKS, TEST, INPUTS, generator=generator)
    return Data(inputs, (teach(inputs) - center) / spread, test, (teach(test) - center) / spread, units)


class Student(nn.Module):
    """Two tanh layers and an output of each task: a layer of its own, or one that all tasks share.

    With a shared output the task is an input, and opposed targets pull the same weights apart.
    """

    def __init__(self, *, shared_output: bool) -> None:
        super().__init__()
        inputs = INPUTS + TASKS * shared_output
        self.trunk = nn.Sequential(nn.Linear(inputs, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(1 if shared_output else TASKS))
        self.shared_output = shared_output

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [T, B, I] to predictions [T, B]."""
        if self.shared_output:
            identity = torch.eye(TASKS).unsqueeze(1).expand(-1, inputs.shape[1], -1)
            return self.heads[0](self.trunk(torch.cat((inputs, identity), -1))).squeeze(-1)  # type: ignore[no-any-return]
        hidden = self.trunk(inputs)
        weight = torch.stack([head.weight for head in self.heads])  # type: ignore[misc]
        bias = torch.stack([head.bias for head in self.heads])  # type: ignore[misc]
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT).squeeze(-1)


def run(
    method: str,
    setting: Setting,
    *,
    seed: int,
    lr: float,
    steps: int,
    points: int,
    options: Mapping[str, Any] | None = None,
) -> Outcome:
    """Train with Adam for `steps` steps; errors are measured `points` times, the last time at the end."""
    torch.manual_seed(seed)  # the initial parameters; methods that draw have a stream of their own
    student = Student(shared_output=setting.opposed)
    combiner = make_combiner(method, num_tasks=TASKS, **(options or {}))
    combiner.seed(seed)
    data = draw(setting, seed, 3 * steps)  # no method takes more than three batches per step
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    model = student if setting.opposed else student.trunk
    heads = () if setting.opposed else tuple(student.heads)
    found = Outcome([], [], "")
    for step in range(steps):

        def losses(batch: int, first: int = step * combiner.num_batches) -> Tensor:
            errors: Tensor = student(data.inputs[first + batch]) - data.targets[first + batch]
            return data.units * errors.square().mean(1)

        try:
            mtl_step(combiner, losses, model, optimizer, heads=heads)
        except ValueError as error:  # non-finite losses or gradients
            found.steps.append(steps)
            found.errors.append([WORST] * TASKS)
            return found._replace(failure=str(error))
        if (step + 1) % (steps // points) == 0:
            found.steps.append(step + 1)
            found.errors.append(_test(student, data).tolist())
    return found


@torch.no_grad()
def _test(student: Student, data: Data) -> Tensor:
    """Mean squared errors [T] on the test samples."""
    errors: Tensor = (student(data.test_inputs) - data.test_targets).square().mean(1)
    return errors.nan_to_num(nan=WORST).clamp(max=WORST)
