"""An ordinary nn.Module as actor and critics: the same updates as the hand-made perceptron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl.agents.sac.replay import Batch
from mtrl.agents.sac.update import SACUpdate
from mtrl.combiners import make_combiner
from mtrl.errors import UserError
from mtrl.gradients.per_task import FlatParameters, TaskGradients
from mtrl.networks.make import ModuleNetwork
from mtrl.networks.mlp import TASK_EMBEDDING
from tests.helpers.agents import ACTION, OBS, TASKS, WIDTH, sac_config, sac_update

SAMPLES = 5


class Plain(nn.Module):
    """The textbook perceptron, written as anybody would."""

    def __init__(self, inputs: int, outputs: int, num_tasks: int, width: int = WIDTH) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())  # type: ignore[no-any-return]


class WithStatistics(Plain):
    def __init__(self, inputs: int, outputs: int, num_tasks: int) -> None:
        super().__init__(inputs, outputs, num_tasks)
        self.norm = nn.BatchNorm1d(inputs)


class Frozen(Plain):
    def __init__(self, inputs: int, outputs: int, num_tasks: int) -> None:
        super().__init__(inputs, outputs, num_tasks)
        self.first.requires_grad_(False)


class OfAnotherSize(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., :1]


class Branching(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() >= 0 else x


class WithBatchNorm(Plain):
    """Without running statistics it has no buffers; its last layer starts at zero."""

    def __init__(self, inputs: int, outputs: int, num_tasks: int) -> None:
        super().__init__(inputs, outputs, num_tasks)
        self.norm = nn.BatchNorm1d(inputs, track_running_stats=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class Centred(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


class Cumulative(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.cumsum(0))


class OfTwo(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class OfAWrongIndex(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x[:, 99]


class Asserting(Plain):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 99
        return super().forward(x)


class Allowed(Plain):
    """Rows by themselves, though large, normalised, of indices and of logarithms."""

    def __init__(self, inputs: int, outputs: int, num_tasks: int) -> None:
        super().__init__(inputs, outputs, num_tasks)
        self.norm, self.table = nn.LayerNorm(inputs), nn.Embedding(2, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return 1e6 * super().forward(self.norm(x.log1p()) + self.table(x[:, 0].long()))


HERE = f"{__name__}:Plain"


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Hand parameters on; rows of the task embedding become columns of the first layer."""
    for ours, theirs in (("0", "first"), ("1", "second"), ("head", "head")):
        weight = source[f"{ours}.weight"]
        if ours == "0":
            weight = torch.cat((weight, source[TASK_EMBEDDING].mT), dim=-1)
        target[f"{theirs}.weight"].copy_(weight)
        target[f"{theirs}.bias"].copy_(source[f"{ours}.bias"])


def _batch(generator: torch.Generator) -> Batch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(TASKS, SAMPLES, *shape, generator=generator)

    return Batch(normal(OBS), normal(ACTION).tanh(), normal(), normal(OBS), torch.ones(TASKS, SAMPLES))


def _trained(agents: list[SACUpdate], updates: int) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(updates):
        batches = [_batch(generator) for _ in range(agents[0].num_batches)]
        noise = torch.randn(len(batches), 2, TASKS, SAMPLES, ACTION, generator=generator)
        for agent in agents:
            agent.step(batches, noise)


# A method of each kind: of losses, of the Gramian, of the Jacobian, elsewhere, other batches, some tasks.
@pytest.mark.dear
@pytest.mark.parametrize(
    "method",
    [
        "mean",
        "fs_mtl",
        "sdmgrad_os",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("cagrad", "pcgrad", "sdmgrad")),
    ],
)
def test_fifty_updates_equal_those_of_the_hand_made_perceptron(method: str) -> None:
    options: dict[str, Any] = {"sampled": 2} if method == "sdmgrad_os" else {}
    made = sac_update(sac_config(method, options=options))
    module = sac_update(sac_config(method, options=options, architecture=HERE))
    for left, right in ((made.actor, module.actor), (made.critic, module.critic)):
        _copy(left.flat.named(), right.flat.named())
    module.target.copy_(module.critic.flat.vector.detach())
    _trained([made, module], 50)
    for left, right in ((made.actor, module.actor), (made.critic, module.critic)):
        expected = {name: torch.empty_like(value) for name, value in right.flat.named().items()}
        _copy(left.flat.named(), expected)
        for name, value in right.flat.named().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)


class OfTwoTypes(Plain):
    """A network with a parameter of NumPy's type."""

    def __init__(self, inputs: int, outputs: int, num_tasks: int) -> None:
        super().__init__(inputs, outputs, num_tasks)
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_the_jacobian_is_that_of_one_backward_pass_per_task() -> None:
    network = ModuleNetwork(Plain, stack=2, num_tasks=TASKS, inputs=4, outputs=2)
    shared, heads, own_rows = network.initial_parameters(torch.Generator().manual_seed(0))
    flat = FlatParameters({k: v.double() for k, v in shared.items()}, heads, own_rows)
    inputs = torch.randn(TASKS, 6, 4, dtype=torch.float64)
    gradients = TaskGradients(
        flat,
        lambda parameters, *_: (network.apply(parameters, inputs).square().mean((0, 2, 3)), None),
        TASKS,
        {},
    )
    rows = []
    modules = [Plain(4 + TASKS, 2, TASKS).double() for _ in range(2)]
    for index, module in enumerate(modules):
        module.load_state_dict({name: value[index] for name, value in flat.named().items()})
    for task in range(TASKS):
        identity = torch.eye(TASKS, dtype=torch.float64)[task].expand(6, TASKS)
        x = torch.cat((inputs[task], identity), dim=-1)
        loss = torch.stack([module(x) for module in modules]).square().mean()
        parts = [torch.autograd.grad(loss, list(m.parameters()), retain_graph=True) for m in modules]
        rows.append(torch.cat([torch.stack(pair).flatten() for pair in zip(*parts, strict=True)]))
    torch.testing.assert_close(gradients(), torch.stack(rows))
    assert make_combiner("cagrad", num_tasks=TASKS).combine(gradients()).isfinite().all()


def test_twins_start_apart_and_the_callers_random_numbers_are_left_alone() -> None:
    state = torch.get_rng_state()
    network = ModuleNetwork(Plain, stack=2, num_tasks=TASKS, inputs=4, outputs=2)
    first, again = (network.initial_parameters(torch.Generator().manual_seed(1)).shared for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first["first.weight"], again["first.weight"])
    assert not torch.equal(first["first.weight"][0], first["first.weight"][1])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (WithStatistics, r"has buffers \(norm\.running_mean.*LayerNorm instead of BatchNorm"),
        (OfTwoTypes, r"has parameters that are not float32 \(scale\)"),
        (Frozen, r"has frozen parameters \(first\.weight, first\.bias\), which would be trained"),
        (OfAnotherSize, r"must map \[3, I\] to \[3, 2\]; found \[3, 1\]"),
        (Branching, "cannot be evaluated for several tasks at once"),
        (WithBatchNorm, "WithBatchNorm: the outputs of a row depend on the other rows of its batch"),
        (Centred, "the outputs of a row depend on the other rows"),
        (Cumulative, "the outputs of a row depend on the other rows"),
        (OfTwo, r"OfTwo must return one tensor \[B, outputs\]; found a tuple"),
        (OfAWrongIndex, "OfAWrongIndex cannot be evaluated.*: IndexError: "),
        (Asserting, "Asserting cannot be evaluated.*: AssertionError"),
    ],
)
@pytest.mark.parametrize("tasks", [1, TASKS])
def test_modules_that_cannot_be_networks_of_several_tasks_are_refused(
    module: type[nn.Module], message: str, tasks: int
) -> None:
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=message):
        ModuleNetwork(module, stack=2, num_tasks=tasks, inputs=4, outputs=2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("tasks", [1, TASKS])
def test_modules_that_map_each_row_by_itself_are_taken(tasks: int) -> None:
    ModuleNetwork(Allowed, stack=2, num_tasks=tasks, inputs=4, outputs=2)


def test_options_reach_the_module_and_unknown_ones_are_named() -> None:
    update = sac_update(sac_config(architecture=HERE, network_options={"width": 7}))
    assert update.critic.flat.named()["first.weight"].shape == (2, 7, OBS + ACTION + TASKS)
    with pytest.raises(UserError, match=r"network\.options \{'widht': 7\}.*widht"):
        sac_update(sac_config(architecture=HERE, network_options={"widht": 7}))
