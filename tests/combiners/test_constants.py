"""Solved methods over the ranges of their constants: what a conic solver finds, or the equations themselves.

The table of oracles has one constant per method. Here are all of the issue's families of gradients, easy and
hard, in double and single precision: three tasks always, other numbers with the slow tests.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from tests.combiners.calls import combined
from tests.helpers.conic import best_worst_improvement_in_ball, best_worst_improvement_in_cap
from tests.helpers.gramian_methods import assert_shortest_within_caps
from tests.helpers.matrices import jacobian
from tests.helpers.properties import assert_direction_oriented

FAMILIES = ("iid", "near_opposite_2", "deficient", "spread_3", "zero_row", "opposed_pairs_2")
# Shortfall of a task over its norm and the radius: of the conic solver, and of single precision's Gramians,
# where gradients cancel: for up to ten tasks, and as rounding adds up for more.
DOUBLE = 1e-6
SINGLE = {"near_opposite_2": 1e-3, "opposed_pairs_2": 1e-3, "deficient": 3e-3}

families = pytest.mark.parametrize("family", FAMILIES)
sizes = pytest.mark.parametrize(
    "tasks", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 10, 50))]
)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])


def solved(name: str, family: str, tasks: int, dtype: torch.dtype, **options: Any) -> tuple[Tensor, Tensor]:
    """The gradients that the method saw and its direction, float64."""
    rows = jacobian(family, tasks, seed=300 + tasks).to(dtype)
    return rows.double(), combined(make_combiner(name, num_tasks=tasks, **options), rows).double()


def tolerance(family: str, dtype: torch.dtype, tasks: int) -> float:
    if dtype == torch.float64:
        return DOUBLE
    return SINGLE[family] * max(1.0, (tasks / 10.0) ** 0.5) if family in SINGLE else 1e-5


def shortfall(rows: Tensor, direction: Tensor, best: float) -> float:
    """What the worst task lacks to `best`, over its norm."""
    present = rows[rows.norm(dim=1) > 0.0]
    return float(((best - present @ direction) / present.norm(dim=1)).max())


@families
@sizes
@pytest.mark.parametrize("name", ["cagrad", "cagrad_fast"])
def test_no_direction_in_the_ball_is_better(name: str, tasks: int, family: str) -> None:
    more = {"sampled": 64} if name == "cagrad_fast" else {}
    for dtype, c in itertools.product((torch.float64, torch.float32), (0.02, 0.1, 0.3, 0.5, 0.9, 1.0)):
        rows, direction = solved(name, family, tasks, dtype, c=c, rescale=0, **more)
        mean = rows.mean(dim=0)
        radius, bound = c * float(mean.norm()), tolerance(family, dtype, tasks)
        assert float((direction - mean).norm()) <= radius * (1.0 + bound), (dtype, c)
        lacks = shortfall(rows, direction, best_worst_improvement_in_ball(rows, c))
        assert lacks <= bound * radius, (dtype, c)


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9, 0.99])
@families
@sizes
@dtypes
def test_no_direction_in_the_cone_is_better(dtype: torch.dtype, tasks: int, family: str, c: float) -> None:
    rows, direction = solved("conicgrad", family, tasks, dtype, c=c)
    mean, bound = rows.mean(dim=0), tolerance(family, dtype, tasks)
    unit = direction / mean.norm()
    assert float(unit.norm()) == pytest.approx(1.0, abs=bound)
    assert float(unit @ mean / mean.norm()) >= c - bound
    best = best_worst_improvement_in_cap(rows, c)
    if best > 0.0:  # else the shortest of the best is stretched, which has a test of its own
        assert shortfall(rows, unit, best) <= bound


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
# Of dependent gradients a solution may not exist.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deficient"])
@sizes
@dtypes
def test_weighing_by_improvements_gives_the_fair_direction(
    dtype: torch.dtype, tasks: int, family: str, alpha: float
) -> None:
    rows, direction = solved("fairgrad", family, tasks, dtype, alpha=alpha)
    present = rows[rows.norm(dim=1) > 0.0]
    improvements = present @ direction
    assert (improvements > 0.0).all()
    weights = improvements.pow(-alpha)
    # Single precision moves what is asked for the longest gradients (docs/methods.md).
    bound = 1e-6 if dtype == torch.float64 else 5e-2 if family in ("spread_3", *SINGLE) else 1e-4
    # Relative to what is summed up: of nearly opposite gradients little of it is left.
    apart = (weights @ present - direction).norm() / (weights @ present.norm(dim=1))
    assert float(apart) <= bound


@pytest.mark.parametrize("cap", [0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("family", ["iid", "near_opposite_2", "deficient", "spread_3", "opposed_pairs_2"])
@sizes
def test_no_mix_within_the_caps_is_shorter(tasks: int, family: str, cap: float) -> None:
    rows, direction = solved("capped_mgda", family, tasks, torch.float64, cap=cap)
    if cap * tasks <= 1.0:
        torch.testing.assert_close(direction, rows.mean(dim=0))
    else:
        assert_shortest_within_caps(rows, direction, cap=cap)


@pytest.mark.parametrize("lam", [0.1, 0.6, 3.0])
@families
@sizes
@pytest.mark.parametrize("name", ["sdmgrad", "sdmgrad_os"])
def test_the_oriented_direction_is_a_quadratic_programs(
    name: str, tasks: int, family: str, lam: float
) -> None:
    more = {"sampled": 64} if name == "sdmgrad_os" else {}
    rows, direction = solved(name, family, tasks, torch.float64, lam=lam, **more)
    assert_direction_oriented(rows, direction, lam=lam)


BASES = {
    "cagrad": {"c": 0.02},
    "conicgrad": {"c": 0.99},
    "fairgrad": {"alpha": 5.0},
    "capped_mgda": {"cap": 0.4},
}
WRAPPERS: dict[str, dict[str, Any]] = {
    "affinity": {},
    "dropgrad": {"rate": 0.0},
    "every": {},
    "fs_mtl": {"rho": 0.0},
    "smoothed": {},
    "turns": {"groups": 1},
}


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("wrapper", list(WRAPPERS))
def test_a_wrapper_that_changes_nothing_is_its_base_with_the_bases_constant(wrapper: str, base: str) -> None:
    options = {"base": base, "base_options": BASES[base], **WRAPPERS[wrapper]}
    rows, direction = solved(wrapper, "iid", 4, torch.float64, **options)
    expected = solved(base, "iid", 4, torch.float64, **BASES[base])[1]
    torch.testing.assert_close(direction, expected, rtol=1e-9, atol=1e-12 * float(rows.norm()))
