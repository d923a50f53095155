"""The networks of the field against plain torch: outputs, per-task gradients, directions, sizes, starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from mtrl.config.schema import NetworkConfig
from mtrl.errors import UserError
from mtrl.gradients.per_task import FlatParameters, Jacobians, TaskGradients
from mtrl.networks.base import NETWORKS, Parameters
from mtrl.networks.make import describe_network, make_network, network_arguments
from tests.helpers.plain_networks import PLAIN, PlainEvaluator

TASKS, ROWS, INPUTS, OUTPUTS = 4, 3, 5, 2
GIVEN = [[1.0, 0.0, 2.0], [0.5, 1.0, 0.0], [2.0, -2.0, 1.0], [0.1, 0.2, 0.3]]
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "brc": ("brc", {"task_identity": "embedding", "identity_width": 3, "width": 6}),
    "brc actor": ("brc", {"role": "actor", "task_identity": "embedding", "width": 6, "depth": 2}),
    "brc, given rows": (
        "brc",
        {"task_identity": "file", "identity_width": 3, "identity_rows": GIVEN, "width": 6, "depth": 2},
    ),
    "moore": ("moore", {"width": 6, "depth": 2, "experts": 3}),
    "soft modules": (
        "soft_modules",
        {"width": 6, "layers": 3, "modules": 2, "module_width": 5, "routing_width": 4},
    ),
    "simba": ("simba", {"width": 4}),
    "simba actor": ("simba", {"role": "actor", "width": 4, "depth": 2}),
    "simba v2": ("simba_v2", {"width": 4}),
    "simba v2 actor": ("simba_v2", {"role": "actor", "width": 4, "depth": 2, "task_identity": "embedding"}),
    "paco": ("paco", {"width": 6, "depth": 2, "sets": 3}),
    "care": ("care", {"width": 6, "depth": 2, "experts": 3, "encoder_width": 5, "embedding": 4}),
    "film": ("film", {"width": 6, "depth": 2, "encoder_width": 5, "embedding": 4}),
    "film per channel": (
        "film",
        {"width": 6, "depth": 1, "encoder_width": 5, "embedding": 4, "per_channel": True},
    ),
}  # fmt: skip


class Problem:
    """A network with random parameters, rows for each task and what they should become."""

    def __init__(self, case: str, stack: int = 2) -> None:
        self.name, options = SMALL[case]
        sizes = {"stack": stack, "num_tasks": TASKS, "inputs": INPUTS, "outputs": OUTPUTS}
        arguments = {"task_identity": "one_hot", **sizes, **options}
        self.network: Any = make_network(self.name, arguments)
        generator = torch.Generator().manual_seed(2)
        shared, heads, own_rows = self.network.initial_parameters(generator)

        def random(values: dict[str, Tensor]) -> dict[str, Tensor]:
            # Not those of the start: several are 0 or 1 there, and PaCo's sets are equal.
            return {
                name: value.double() + 0.3 * torch.randn(value.shape, generator=generator).double()
                for name, value in values.items()
            }

        self.flat = FlatParameters(random(shared), random(heads), own_rows)
        self.inputs = torch.randn(TASKS, ROWS, INPUTS, generator=generator).double()
        self.targets = torch.randn(TASKS, ROWS, OUTPUTS, generator=generator).double()
        self.plain = PlainEvaluator(PLAIN[self.name], self.network, self.flat, self.inputs, self.targets)

    def gradients(self, buffers: Jacobians | None = None) -> TaskGradients:
        return TaskGradients(self.flat, self.losses, TASKS, {} if buffers is None else buffers)

    def losses(self, parameters: Parameters, batch: int, tasks: Tensor | None) -> tuple[Tensor, None]:
        inputs = self.inputs if tasks is None else self.inputs[tasks]
        targets = self.targets if tasks is None else self.targets[tasks]
        outputs = self.network.apply(parameters, inputs, tasks)
        return (outputs - targets).square().mean(dim=(0, 2, 3)), None


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("case", SMALL)
def test_outputs_are_those_of_the_plain_network(case: str, stack: int) -> None:
    problem = Problem(case, stack)
    named, network = problem.flat.named(), problem.network
    plain = PLAIN[problem.name]
    expected = torch.stack([
        torch.stack([plain(network, named, s, t, problem.inputs[t]) for t in range(TASKS)])
        for s in range(stack)
    ])  # fmt: skip
    close(network.apply(named, problem.inputs), expected)
    some = torch.tensor([3, 1])
    close(network.apply(named, problem.inputs[some], some), expected[:, some])


@pytest.mark.parametrize("case", SMALL)
def test_the_jacobian_is_that_of_a_loop_of_backward_passes(case: str) -> None:
    """At the parameters, at parameters that differ between tasks, and of some tasks alone, in one buffer."""
    problem, buffers = Problem(case), Jacobians()
    rows = problem.plain.rows(0.0)
    shared = problem.flat.num_shared
    gradients = problem.gradients(buffers)
    close(gradients(), rows[:, :shared])
    close(gradients.losses, problem.plain.losses)
    close(gradients.head_gradient, rows[:, shared:].sum(0))
    offset = 0.1 * torch.randn(TASKS, shared, generator=torch.Generator().manual_seed(4)).double()
    moved = problem.plain.rows(offset)[:, :shared]
    close(problem.gradients(buffers)(offset), moved)
    some = torch.tensor([2, 0])
    close(problem.gradients(buffers)(tasks=some), rows[some, :shared])
    close(problem.gradients(buffers)(offset, tasks=some), moved[some])
    grams: list[Tensor] = []

    def weights(gram: Tensor) -> Tensor:
        grams.append(gram)
        return torch.tensor([0.1, 0.5, 0.0, 0.4]).double()

    combined = problem.gradients(buffers).combined(weights)
    close(grams[0], rows[:, :shared] @ rows[:, :shared].T)
    close(combined, weights(grams[0]) @ rows[:, :shared])


@pytest.mark.parametrize("case", SMALL)
def test_a_network_used_twice_in_a_loss_gets_both_contributions(case: str) -> None:
    problem = Problem(case)
    once = problem.losses

    def twice(parameters: Parameters, batch: int, tasks: Tensor | None) -> tuple[Tensor, None]:
        return once(parameters, batch, tasks)[0] + 2 * once(parameters, batch, tasks)[0], None

    grams: list[Tensor] = []

    def first(gram: Tensor) -> Tensor:
        grams.append(gram)
        return torch.tensor([1.0, 0.0, 0.0, 0.0]).double()

    rows = 3 * problem.plain.rows(0.0)[:, : problem.flat.num_shared]
    close(TaskGradients(problem.flat, twice, TASKS, {}).combined(first), rows[0])
    close(grams[0], rows @ rows.T)


@pytest.mark.parametrize("method", ["cagrad", "mean", "nash_mtl", "fs_mtl"])
@pytest.mark.parametrize("case", SMALL)
def test_directions_are_those_of_plain_gradients(case: str, method: str) -> None:
    """`mean` takes one backward, `fs_mtl` gradients at moved parameters and heads."""
    problem = Problem(case)
    ours, plain = (make_combiner(method, num_tasks=TASKS).double() for _ in range(2))
    found = ours.direction(problem.gradients())
    # The solvers of weights are exact to about a millionth.
    torch.testing.assert_close(found, plain.direction(problem.plain), rtol=1e-6, atol=1e-8)


COUNTS: dict[str, tuple[str, dict[str, Any], tuple[int, int], tuple[int, int]]] = {
    # network, options, (actor, critic) of MT10, of MT50; docs/networks.md has the same table.
    "3 x 400": ("mlp", {}, (344_008, 342_801), (360_008, 358_801)),
    "multi-head": ("mlp", {"per_task_heads": True}, (372_880, 346_410), (517_200, 378_450)),
    "soft modules 2x2": ("soft_modules", {}, (691_022, 690_823), (707_022, 706_823)),
    "soft modules 4x4x128": (
        "soft_modules",
        {"layers": 4, "modules": 4, "module_width": 128},
        (792_444, 793_141),
        (808_444, 809_141),
    ),
    "soft modules 4x4x256": (
        "soft_modules", {"layers": 4, "modules": 4}, (1_590_140, 1_589_941), (1_606_140, 1_605_941)
    ),
    "paco 5": ("paco", {}, (1_700_090, 1_694_055), (1_700_290, 1_694_255)),
    "paco 20": ("paco", {"sets": 20}, (6_800_360, 6_776_220), (6_801_160, 6_777_020)),
    "moore 4": ("moore", {}, (1_379_320, 1_357_650), (1_507_800, 1_373_850)),
    "moore 6": ("moore", {"experts": 6}, (2_052_940, 2_034_470), (2_181_500, 2_050_750)),
    "care 6": ("care", {}, (420_564, 418_957), (422_564, 420_957)),
    "care 10": ("care", {"experts": 10}, (449_168, 448_361), (451_168, 450_361)),
    "film": ("film", {}, (377_414, 374_807), (379_414, 376_807)),
}  # fmt: skip
OF_ROLE: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    # network, options of one role, (MT10, MT50)
    "brc critic 4096": (
        "brc",
        {"width": 4096, "outputs": 101, "task_identity": "embedding"},
        (67_891_301 + 320, 67_891_301 + 1_600),
    ),
    "brc critic 1024": (
        "brc",
        {"width": 1024, "outputs": 101, "task_identity": "embedding"},
        (4_389_989 + 320, 4_389_989 + 1_600),
    ),
    "brc critic 256": (
        "brc",
        {"width": 256, "outputs": 101, "task_identity": "embedding"},
        (311_141 + 320, 311_141 + 1_600),
    ),
    "brc actor": (
        "brc",
        {"role": "actor", "width": 256, "depth": 2, "task_identity": "embedding"},
        (153_608 + 320, 153_608 + 1_600),
    ),
    "simba actor": ("simba", {"role": "actor", "width": 128, "depth": 2}, (139_656, 144_776)),
    "simba critic": ("simba", {"width": 512}, (4_230_657, 4_251_137)),
    "simba v2 actor": ("simba_v2", {"role": "actor", "width": 128, "depth": 2}, (172_296, 177_416)),
    "simba v2 critic": ("simba_v2", {"width": 512, "outputs": 101}, (4_542_053, 4_562_533)),
}  # fmt: skip


def count(name: str, role: str, tasks: int, options: dict[str, Any]) -> int:
    sizes = {"inputs": 39, "outputs": 8} if role == "actor" else {"inputs": 43, "outputs": 1}
    arguments = {"stack": 1, "num_tasks": tasks, "task_identity": "one_hot", **sizes, **options}
    network: Any = make_network(name, arguments)
    return int(network.layout().size)


@pytest.mark.parametrize("case", COUNTS)
def test_sizes_are_the_published_ones(case: str) -> None:
    name, options, *expected = COUNTS[case]
    found = [tuple(count(name, role, tasks, options) for role in ("actor", "critic")) for tasks in (10, 50)]
    assert found == expected


@pytest.mark.parametrize("case", OF_ROLE)
def test_sizes_of_networks_that_differ_by_role_are_the_published_ones(case: str) -> None:
    name, options, expected = OF_ROLE[case]
    role = options.get("role", "critic")
    assert tuple(count(name, role, tasks, options) for tasks in (10, 50)) == expected


def test_the_page_of_networks_has_these_sizes() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "networks.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "," in line]
    table = {row[0]: row[1:] for row in rows if len(row) == 6}
    for name, options, small, large in COUNTS.values():
        numbers = [f"{number:,}" for number in (*small, *large)]
        assert any(row[:4] == numbers for row in table.values()), (name, options)
    table = {name: row for name, row in table.items() if name.startswith("`")}
    for name, row in table.items():  # the perceptron as large as each critic
        outputs = 101 if name.startswith(("`brc`", "`simba_v2`")) else 1
        critic, options = int(row[1].replace(",", "")), {"width": int(row[4]), "outputs": outputs}
        assert count("mlp", "critic", 10, options) == pytest.approx(critic, rel=3e-3), name
    ours = [number for *_, numbers in OF_ROLE.values() for number in numbers]
    stated = {cell for name, row in table.items() for cell in row if name[1:4] in ("brc", "sim")}
    assert {f"{number:,}" for number in ours} <= stated


def test_every_network_of_the_library_is_compared_with_a_plain_one() -> None:
    assert {name for name, _ in SMALL.values()} == set(NETWORKS) - {"mlp"} == set(PLAIN)


def test_the_start_screen_names_a_network_and_its_options() -> None:
    config = NetworkConfig(architecture="moore", actor_width=32, options={"experts": 4})
    sizes: dict[str, Any] = {"stack": 1, "inputs": 39, "outputs": 8, "task_names": ("a", "b")}
    words = describe_network("moore", network_arguments(config, "actor", **sizes))
    assert words == "moore 3x32, experts 4"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("moore", {"experts": 0}, "network moore: experts must be positive; found 0"),
        ("moore", {"experts": 9, "width": 8}, "experts must be at most the width 8"),
        ("soft_modules", {"layers": 1}, "layers must be at least 2; found 1"),
        ("paco", {"sets": 0}, "sets must be positive"),
        ("care", {"temperature": 0.0}, "temperature must be positive; found 0.0"),
        ("film", {"encoder_width": -3}, "encoder_width must be positive; found -3"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        count(name, "actor", 10, options)
