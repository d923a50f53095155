"""`reset` gives a fresh instance, whatever has happened to the used one before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import COMBINERS, Combiner, make_combiner
from tests.combiners.calls import NAMES
from tests.combiners.oracles import ORACLES
from tests.helpers.evaluators import Linear
from tests.helpers.loss_methods import losses_of
from tests.helpers.matrices import jacobian

TASKS = 5

# Forms beyond the one of the table: wrappers around methods that have a state, and losses that are shifted.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "affinity of moco": ("affinity", {"base": "moco"}),
    "dropgrad of adatask": ("dropgrad", {"base": "adatask"}),
    "dropgrad of every": ("dropgrad", {"base": "every", "base_options": {"refresh_every": 3}}),
    "every of gradvac": ("every", {"base": "gradvac", "refresh_every": 2}),
    "fs_mtl of gradvac": ("fs_mtl", {"base": "gradvac"}),
    "nash_mtl now and then": ("nash_mtl", {"refresh_every": 4}),
    "smoothed nash_mtl": ("smoothed", {"base": "nash_mtl", "base_options": {"refresh_every": 3}}),
    "turns of gradnorm": ("turns", {"base": "gradnorm", "groups": 2}),
    "turns of every": ("turns", {"base": "every", "groups": 2}),
    "sdmgrad as published": ("sdmgrad", {"solver": "paper"}),
    "bmtl in deviations": ("bmtl", {"unit": "deviation"}),
    "cagrad_fast in an order": ("cagrad_fast", {"sampled": 3, "order": (4, 2, 0, 1, 3)}),
    **{
        f"{name} of shifted losses": (name, {**ORACLES[name].options, "shift": "minimum"})
        for name, cls in COMBINERS.items()
        if cls.positive_losses
    },
    **{name: (name, ORACLES[name].options) for name in NAMES},
}


def make(form: str) -> Combiner:
    name, options = FORMS[form]
    combiner = make_combiner(name, num_tasks=TASKS, **options)
    combiner.seed(7)
    return combiner


def step(combiner: Combiner, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    rows = jacobian("iid", TASKS, seed).to(dtype)
    result = combiner.direction(Linear(rows, losses=losses_of(rows)))
    combiner.after_step(losses_of(rows) * torch.linspace(0.5, 1.1, TASKS, dtype=dtype))
    return result


def used(form: str) -> Combiner:
    combiner = make(form)
    for seed in range(3):
        step(combiner, seed)
    return combiner


def prepared(form: str) -> Combiner:
    combiner = make(form)
    combiner.prepare(torch.zeros(20, dtype=torch.float64))
    for seed in range(2):
        step(combiner, seed)
    return combiner


def in_single_precision(form: str) -> Combiner:
    combiner = make(form)
    combiner.prepare(torch.zeros(20, dtype=torch.float64))
    combiner.to(torch.float32)
    step(combiner, 1, torch.float32)
    return combiner


def loaded(form: str) -> Combiner:
    combiner = make(form)
    combiner.load_state_dict(used(form).state_dict())
    return combiner


def copied(form: str) -> Combiner:
    combiner = copy.deepcopy(used(form)) if form != "torchjd" else used(form)  # its aggregator has a hook
    step(combiner, 4)
    return combiner


def interrupted(form: str) -> Combiner:
    combiner = used(form)
    rows = jacobian("iid", TASKS, 8)
    combiner.direction(Linear(rows, losses=losses_of(rows)))  # without `after_step`, for which some would ask
    return combiner


@pytest.mark.parametrize("form", FORMS)
def test_a_state_from_before_the_first_step_loads_later(form: str) -> None:
    combiner, fresh = used(form), make(form)
    combiner.load_state_dict(fresh.state_dict())
    for seed in (9, 10):
        assert torch.equal(step(combiner, seed), step(fresh, seed)), seed


HISTORIES = (prepared, in_single_precision, loaded, copied, interrupted)


@pytest.mark.parametrize("form", FORMS)
def test_reset_gives_a_fresh_instance(form: str) -> None:
    directions: dict[torch.dtype, list[Tensor]] = {}
    for history in HISTORIES:
        dtype, told = torch.float64, history.__name__
        if history is in_single_precision:
            dtype = torch.float32
        combiner, fresh = history(form), make(form)
        fresh.prepare(torch.zeros(20, dtype=dtype))
        places = {key: buffer.data_ptr() for key, buffer in combiner.named_buffers()}
        combiner.reset()
        assert {key: buffer.data_ptr() for key, buffer in combiner.named_buffers()} == places, told
        found, expected = combiner.state_dict(), fresh.state_dict()
        assert found.keys() == expected.keys(), told
        for key, value in found.items():
            assert torch.equal(value, expected[key]), (told, key)
        hidden = dict(fresh.named_buffers())
        for key, buffer in combiner.named_buffers():
            assert buffer.dtype == hidden[key].dtype, (told, key)
            assert torch.equal(buffer, hidden[key]), (told, key)
        # All that is hidden from the buffers would show in these.
        if dtype not in directions:
            directions[dtype] = [step(fresh, seed, dtype) for seed in (9, 10)]
        for seed, direction in zip((9, 10), directions[dtype], strict=True):
            assert torch.equal(step(combiner, seed, dtype), direction), (told, seed)
