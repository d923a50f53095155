"""Gradients that cancel up to a part of their length near what their Gramian resolves: proofs still hold."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from tests.combiners.calls import combined

# Parts of a gradient's length around the root of the tolerance, where decisions about dependence turn.
PARTS = {
    torch.float64: (1e-2, 1e-4, 1e-5, 5e-6, 3e-6, 2e-6, 1e-6, 1e-8),
    torch.float32: (1e-1, 1e-2, 3e-3, 2e-3, 1e-3, 7e-4, 3e-4, 1e-5),
}
# Largest residual: what is neglected is the root of the tolerance.
BOUND = {torch.float64: 5e-6, torch.float32: 2e-3}


def along_a_line(tasks: int, part: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    line = torch.randn(1, 4 * tasks, generator=generator, dtype=torch.float64)
    signs = torch.randn(tasks, 1, generator=generator, dtype=torch.float64).sign()
    signs[0], signs[1] = 1.0, -1.0
    return signs * line + part * torch.randn(tasks, 4 * tasks, generator=generator, dtype=torch.float64)


def in_pairs(tasks: int, part: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, 4 * tasks, generator=generator, dtype=torch.float64)
    for task in range(1, tasks, 2):
        rows[task] = part * rows[task] - rows[task - 1]
    return rows


@pytest.mark.dear
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cagrad", {"c": 0.02}),
        ("cagrad", {"c": 1.0}),
        ("capped_mgda", {}),
        ("imgrad", {"c": 0.02}),
        ("mgda", {}),
        ("sdmgrad", {}),
        ("upgrad", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_residual_stays_below_the_root_of_the_tolerance(
    name: str, options: dict[str, Any], dtype: torch.dtype, seed: int
) -> None:
    for made, tasks, part in itertools.product((along_a_line, in_pairs), (3, 5, 10), PARTS[dtype]):
        combiner = make_combiner(name, num_tasks=tasks, **options)
        combined(combiner, made(tasks, part, seed).to(dtype))
        assert abs(float(combiner.metrics()["residual"])) <= BOUND[dtype], (made, tasks, part)


@pytest.mark.parametrize("c", [0.1, 0.5, 0.99])
def test_conicgrad_holds_as_long_as_the_gramian_knows_the_mean(c: float) -> None:
    for made, tasks, part in itertools.product(
        (along_a_line, in_pairs), (3, 5, 10), (1e-1, 1e-2, 1e-3, 1e-4)
    ):
        combiner = make_combiner("conicgrad", num_tasks=tasks, c=c)
        combined(combiner, made(tasks, part, seed=0))
        assert abs(float(combiner.metrics()["residual"])) <= 1e-5, (made, tasks, part)


def test_without_a_mean_gradient_there_is_no_ball_and_no_gap() -> None:
    rows = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = (rows - (1.0 - 1e-4) * rows.mean(dim=0)).float()  # by its rounded Gramian |g0|^2 is below zero
    for name in ("cagrad", "imgrad"):
        combiner = make_combiner(name, num_tasks=3)
        assert combined(combiner, rows).isfinite().all()
        assert abs(float(combiner.metrics()["residual"])) < 1e-3
