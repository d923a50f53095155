"""Losses of any sign where positive ones are needed: measured from each task's lowest value, plus one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from mtrl.combiners import COMBINERS, LossCombiner, make_combiner
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners._state import LossOrigin
from tests.helpers.matrices import jacobian

POSITIVE = sorted(name for name, cls in COMBINERS.items() if cls.positive_losses)


def test_losses_are_measured_from_the_lowest_so_far() -> None:
    origin = LossOrigin(2, "minimum")
    seen = [[3.0, -1.0], [5.0, -4.0], [2.0, -4.0], [4.0, 0.0]]
    measured = [origin(torch.tensor(losses)).tolist() for losses in seen]
    assert measured == [[1.0, 1.0], [3.0, 1.0], [1.0, 1.0], [3.0, 5.0]]
    origin.reset()
    assert origin(torch.tensor([9.0, 9.0])).tolist() == [1.0, 1.0]


def test_unshifted_losses_stay_as_they_are_and_leave_no_state() -> None:
    origin = LossOrigin(2, "none")
    assert origin(torch.tensor([3.0, 0.5])).tolist() == [3.0, 0.5]
    assert not origin.state_dict()


@pytest.mark.parametrize("name", POSITIVE)
def test_an_offset_common_to_all_updates_does_not_matter(name: str) -> None:
    plain, offset = (make_combiner(name, num_tasks=3, shift="minimum") for _ in range(2))
    added = torch.tensor([-100.0, 7.0, -0.5], dtype=torch.float64)
    for seed in range(4):
        rows = jacobian("iid", 3, seed)
        losses = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64) * math.cos(seed)
        expected = plain.combine(rows, losses)
        torch.testing.assert_close(offset.combine(rows, losses + added), expected)
        plain.after_step(losses - 0.1)
        offset.after_step(losses + added - 0.1)


@pytest.mark.parametrize("name", POSITIVE)
def test_the_lowest_values_survive_a_checkpoint(name: str) -> None:
    original, restored = (make_combiner(name, num_tasks=3, shift="minimum") for _ in range(2))
    rows = jacobian("iid", 3, seed=0)
    original.combine(rows, torch.tensor([-5.0, 0.0, 1.0], dtype=torch.float64))
    restored.load_state_dict(original.state_dict())
    assert restored.state_dict()["origin.lowest"].tolist() == [-5.0, 0.0, 1.0]


@pytest.mark.parametrize("name", POSITIVE)
def test_what_the_shift_takes_from_a_method_is_in_its_docstring(name: str) -> None:
    assert "With `shift` = `minimum`" in " ".join((COMBINERS[name].__doc__ or "").split())


@pytest.mark.parametrize(("name", "options"), [("dwa", {}), ("stch", {"warmup": 2})])
def test_losses_that_only_fall_make_these_methods_the_mean(name: str, options: dict[str, Any]) -> None:
    plain, shifted = (make_combiner(name, num_tasks=2, shift=how, **options) for how in ("none", "minimum"))
    losses = torch.tensor([4.0, 5.0], dtype=torch.float64)
    for _ in range(5):
        losses = losses * torch.tensor([0.5, 0.9])
        for combiner in (plain, shifted):
            combiner.combine(torch.eye(2, dtype=torch.float64), losses)
    assert shifted.last_weights.tolist() == [0.5, 0.5]
    assert plain.last_weights[0] != plain.last_weights[1]


class Unshifted(PositiveLosses, LossCombiner):
    """Inverse losses, without the option `shift`."""

    name = "unshifted"

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)

    def _weights(self, losses: torch.Tensor) -> torch.Tensor:
        return losses.reciprocal()


@pytest.mark.parametrize(
    ("name", "options", "advice"),
    [
        ("famo", {}, "Pass shift='minimum' to"),
        ("momentum", {"base": "famo"}, r"Pass base_options={'shift': 'minimum'} to"),
        (
            "affinity",
            {"base": "momentum", "base_options": {"base": "uw"}},
            r"Pass base_options={'base_options': {'shift': 'minimum'}} to",
        ),
        (f"{__name__}:Unshifted", {}, r"tasks \[1\]\.$"),
        ("turns", {"base": f"{__name__}:Unshifted", "groups": 1}, r"tasks \[1\]\.$"),
    ],
)
def test_negative_losses_are_refused_with_options_that_exist(
    name: str, options: dict[str, Any], advice: str
) -> None:
    combiner = make_combiner(name, num_tasks=2, **options)
    losses = torch.tensor([1.0, -1.0])
    with pytest.raises(ValueError, match=advice):
        combiner.combine(torch.eye(2), losses)
    if combiner.shift_options:
        shifted = make_combiner(name, num_tasks=2, **_merged(options, combiner.shift_options))
        assert shifted.combine(torch.eye(2), losses).isfinite().all()


def _merged(options: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **options,
        **{
            key: _merged(options.get(key, {}), value) if isinstance(value, Mapping) else value
            for key, value in more.items()
        },
    }
