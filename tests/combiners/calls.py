"""Calls that every test of all methods makes, and the methods a law holds for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from mtrl.combiners import COMBINERS, Combiner
from tests.combiners.oracles import ORACLES, Row
from tests.helpers.evaluators import Linear
from tests.helpers.loss_methods import losses_of

# Without the package torchjd its method cannot be made; the end of pytest's output says what is left out.
NAMES = sorted(name for name in COMBINERS if name != "torchjd" or find_spec("torchjd"))
CONFLICT = torch.tensor([[1.0, 0.2, 0.0], [-0.9, 0.5, 0.0], [0.1, -0.6, 1.0]], dtype=torch.float64)

methods = pytest.mark.parametrize("name", NAMES)


def methods_where(holds: Callable[[Row], bool]) -> pytest.MarkDecorator:
    """The methods whose row in the table says that the law under test holds for them."""
    return pytest.mark.parametrize("name", [name for name in NAMES if holds(ORACLES[name])])


def direction(name: str, rows: Tensor) -> Tensor:
    """The direction of a fresh instance; of methods that first have to get to know the tasks a later one."""
    combiner = ORACLES[name].make(name, len(rows))
    for _ in range(ORACLES[name].calls(len(rows)) - 1):
        combined(combiner, rows)
    return combined(combiner, rows)


def combined(combiner: Combiner, rows: Tensor) -> Tensor:
    """One step's direction, as an update gets it: constant gradients, the second look at equal losses."""
    losses = losses_of(rows)
    result = combiner.direction(Linear(rows, losses=losses))
    if combiner.looks_again:
        combiner.after_step(losses)
    return result
