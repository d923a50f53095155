"""Losses of any sign where positive ones are needed: measured from each task's lowest value, plus one."""

from __future__ import annotations

import math

import pytest
import torch

from mtrl.combiners import COMBINERS, make_combiner
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
