from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from mtrl import mtl_step
from mtrl.combiners import make_combiner
from mtrl.combiners.blocks import Blocks
from mtrl.combiners.mean import Mean
from mtrl.errors import UserError
from mtrl.gradients.per_task import FlatParameters
from tests.helpers.agents import sac_config, sac_update
from tests.helpers.matrices import jacobian


@pytest.mark.parametrize("base", ["cagrad", "adatask", "famo", "graddrop", "nash_mtl"])
def test_each_block_is_the_base_on_its_columns(base: str) -> None:
    combiner = make_combiner("blocks", num_tasks=3, base=base, sizes=(5, -1))
    alone = [make_combiner(base, num_tasks=3) for _ in range(2)]
    losses = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    for member, own in zip(combiner.bases, alone, strict=True):  # type: ignore[arg-type]
        own.stream.copy_(member.stream)
    for seed in range(3):
        rows = jacobian("conflicting", 3, seed)
        parts = [rows[:, :5], rows[:, 5:]]
        expected = [own.combine(part, losses) for own, part in zip(alone, parts, strict=True)]
        torch.testing.assert_close(combiner.combine(rows, losses), torch.cat(expected))
        for own in (combiner, *alone):
            own.after_step(losses * torch.tensor([0.9, 1.1, 0.5]))


class Conflict(nn.Module):
    """Two tasks that agree on one layer and conflict on the other; a layer in between may be empty."""

    def __init__(self, *, hollow: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(1, 1).double()
        if hollow:
            self.hollow = nn.Embedding(0, 4).double()
        self.second = nn.Linear(1, 1).double()

    def losses(self, batch: int = 0) -> torch.Tensor:
        agreed = self.first.weight.sum() + self.first.bias.sum()
        apart = self.second.weight.sum() + 2.0 * self.second.bias.sum()
        return torch.stack((agreed + apart, agreed - 3.0 * apart))


@pytest.mark.parametrize("hollow", [False, True])
def test_a_step_takes_the_modules_as_blocks(hollow: bool) -> None:
    model = Conflict(hollow=hollow)
    before = [p.detach().clone() for p in model.parameters()]
    combiner = make_combiner("blocks", num_tasks=2, base="pcgrad")
    mtl_step(combiner, model.losses, model, torch.optim.SGD(model.parameters(), lr=1.0))
    moves = torch.cat(
        [(old - new).detach().flatten() for old, new in zip(before, model.parameters(), strict=True)]
    )
    # Gradients that agree are averaged; of those that conflict along one line nothing is left.
    torch.testing.assert_close(moves, torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    assert len(combiner.bases) == 2  # type: ignore[arg-type]


def test_in_training_a_layer_without_parameters_is_no_block() -> None:
    shapes = {"first.weight": (2, 3), "first.bias": (3,), "hollow.weight": (0, 4), "last.weight": (3, 1)}
    parameters = FlatParameters({name: torch.zeros(shape) for name, shape in shapes.items()})
    combiner = make_combiner("blocks", num_tasks=2)
    combiner.partition(parameters.module_sizes)
    assert combiner.combine(torch.ones(2, 12)).tolist() == [1.0] * 12
    assert len(combiner.bases) == 2  # type: ignore[arg-type]


def test_training_takes_the_layers_as_blocks_and_each_draws_for_itself() -> None:
    update = sac_update(sac_config("blocks"))
    for network in (update.critic, update.actor):
        combiner = network.combiner
        assert isinstance(combiner, Blocks)
        assert len(combiner.bases) == 3  # two layers and the head
        streams = {int(base.stream) for base in combiner.bases}  # type: ignore[arg-type]
        assert len(streams) == 3
    again = sac_update(sac_config("blocks"))
    assert all(torch.equal(a, b) for a, b in zip(update.buffers(), again.buffers(), strict=True))


def test_a_fresh_instance_takes_the_number_of_blocks_from_a_saved_state() -> None:
    rows, losses = jacobian("conflicting", 3, seed=0), torch.ones(3, dtype=torch.float64)
    first, second = (make_combiner("blocks", num_tasks=3, base="momentum") for _ in range(2))
    first.partition((4, rows.shape[1] - 4))
    first.combine(rows, losses)
    second.load_state_dict(first.state_dict())
    second.partition((4, rows.shape[1] - 4))
    rows = jacobian("conflicting", 3, seed=1)
    assert torch.equal(first.combine(rows, losses), second.combine(rows, losses))
    with pytest.raises(ValueError, match="this instance has 2 blocks; found 3"):
        second.partition((1, 1, 1))


def test_a_state_from_before_the_blocks_were_known_loads_later() -> None:
    first, second, third = (make_combiner("blocks", num_tasks=3, base="graddrop") for _ in range(3))
    first.seed(5)
    second.load_state_dict(first.state_dict())
    for combiner in (second, third):
        combiner.partition((4, -1))
    third.combine(jacobian("conflicting", 3, seed=0))
    third.load_state_dict(first.state_dict())
    for seed in (1, 2):
        rows = jacobian("conflicting", 3, seed)
        assert torch.equal(second.combine(rows), third.combine(rows))


def test_a_stream_is_the_same_whether_it_is_chosen_before_or_after_the_blocks_are_known() -> None:
    rows = jacobian("conflicting", 5, seed=0)
    for base, options in (("pcgrad", {}), ("momentum", {"base": "graddrop"})):
        given: dict[str, Any] = {"num_tasks": 5, "base": base, "base_options": options}
        early, late = (make_combiner("blocks", **given) for _ in range(2))
        sized = make_combiner("blocks", sizes=(4, -1), **given)
        early.seed(7)
        for combiner in (early, late):
            combiner.partition((4, rows.shape[1] - 4))
        for combiner in (late, sized):
            combiner.seed(7)
        for _ in range(3):
            directions = [combiner.combine(rows) for combiner in (early, late, sized)]
            assert torch.equal(directions[0], directions[1])
            assert torch.equal(directions[0], directions[2])


def test_blocks_that_are_made_after_the_checks_were_skipped_skip_them() -> None:
    combiner, losses = make_combiner("blocks", num_tasks=2, base="famo"), torch.ones(2)
    combiner.skip_checks()
    combiner.partition((1, -1))
    combiner.combine(torch.eye(2), losses)
    combiner.after_step(losses * torch.nan)


class Told(Mean):
    """The mean; notes what the hooks tell it."""

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)
        self.sizes: list[int] = []

    def partition(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("momentum", {}, [[4, 3]]),
        ("turns", {}, [[4, 3], [4, 3]]),
        ("fs_mtl", {}, [[4, 3], [4, 3]]),
        ("blocks", {}, [[4], [3]]),
        ("blocks", {"sizes": (5, -1)}, [[5], [2]]),
    ],
)
def test_a_base_is_told_the_modules_of_its_columns(
    name: str, options: dict[str, Any], expected: list[list[int]]
) -> None:
    combiner = make_combiner(name, num_tasks=2, base=f"{__name__}:Told", **options)
    combiner.partition((4, 3))
    assert [base.sizes for base in combiner.modules() if isinstance(base, Told)] == expected


def test_blocks_as_a_base_ask_for_the_option_that_a_base_has() -> None:
    with pytest.raises(ValueError, match=r"needs the sizes of the modules .*base_options"):
        make_combiner("momentum", num_tasks=2, base="blocks")


def test_success_rates_from_before_the_modules_were_known_reach_the_bases() -> None:
    early, late, forgetful = (make_combiner("blocks", num_tasks=2, base="pivrg") for _ in range(3))
    rates = torch.tensor([0.0, 1.0])
    for combiner in (early, forgetful):
        combiner.note_success(rates)
    forgetful.reset()
    for combiner in (early, late, forgetful):
        combiner.partition((4, 3))
    found = [combiner.state_dict()["bases.1.preference"] for combiner in (early, late, forgetful)]
    late.note_success(rates)
    assert found[0].tolist() == late.state_dict()["bases.1.preference"].tolist() != [1.0, 1.0]
    assert found[2].tolist() == [1.0, 1.0]


def test_unknown_blocks_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"blocks needs the sizes of the modules .*mtl_step"):
        make_combiner("blocks", num_tasks=2).combine(torch.eye(2))


@pytest.mark.parametrize("sizes", [(0, -1), (-1, -1), (1.5,), (True, 2), (-2,)])
def test_sizes_that_are_none_are_refused(sizes: Any) -> None:
    with pytest.raises(ValueError, match="sizes must be positive numbers of columns"):
        make_combiner("blocks", num_tasks=2, sizes=sizes)


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (4, -1)])
def test_sizes_that_do_not_make_up_the_columns_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="sizes must add up to the 4 columns"):
        make_combiner("blocks", num_tasks=2, sizes=sizes).combine(torch.ones(2, 4))
