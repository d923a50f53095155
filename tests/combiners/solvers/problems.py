"""Gramians on which solvers fail, made anew for the solvers' tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.matrices import EXTREME, FAMILIES, jacobian

# The families, and some of them with norms that spread over 10^-k to 10^k.
KINDS = [
    *((name, 0.0) for name in FAMILIES),
    ("iid", 4.0),
    ("common", 4.0),
    ("conflicting", 4.0),
    ("deficient", 4.0),
]
DTYPES = [torch.float64, torch.float32]

kinds = pytest.mark.parametrize(("family", "decades"), KINDS, ids=lambda value: str(value))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["double", "single"])
sizes = pytest.mark.parametrize(
    "tasks", [3, 10, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 25, 50, 64))]
)


# Rows made of others, and rows whose squares reach the ends of the dtype's range.
MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": lambda rows: rows.index_fill(0, torch.arange(0, len(rows), 3), 0.0),
    "cancelling": lambda rows: rows - rows.mean(dim=0),
    "exactly_cancelling": lambda rows: _cancelled((8.0 * rows[1:]).round()),
    "opposite": lambda rows: torch.cat((rows[:1], -0.7 * rows[:1], rows[2:]))[: len(rows)],
    "all_opposite": lambda rows: torch.cat((rows[::2], -rows[::2]))[: len(rows)],
    "twins": lambda rows: torch.cat((rows[::2], rows[::2]))[: len(rows)],
    "one_gradient": lambda rows: rows[:1].repeat(len(rows), 1),
    "rank_one": lambda rows: rows[:, :1] * rows[:1],
    "line": lambda rows: rows[:, :1].sign() * rows[:1] + 1e-2 * rows,
}
SCALED: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "one_long": lambda rows, long, short: torch.cat((long * rows[:1], rows[1:])),
    "all_long": lambda rows, long, short: long * rows,
    "some_short": lambda rows, long, short: torch.cat((short * rows[::2], rows[1::2])),
    "all_short": lambda rows, long, short: short * rows,
}
# All that a kernel solves as the host does.
ALL_KINDS = [*KINDS, ("iid", 6.0), *((name, 0.0) for name in (*EXTREME, *MADE, *SCALED))]


def problem(family: str, decades: float, tasks: int, seed: int, dtype: torch.dtype) -> Tensor:
    """The Gramian of one of `ALL_KINDS`."""
    if family in MADE:
        rows = MADE[family](drawn("iid", decades, tasks, seed))
    elif family in SCALED:
        limits = torch.finfo(dtype)
        long, short = 1e-4 * limits.max**0.5, 1e2 * (limits.tiny * limits.eps) ** 0.5
        rows = SCALED[family](drawn("iid", decades, tasks, seed), long, short)
    else:
        rows = drawn(family, decades, tasks, seed)
    return gramian_of(rows, dtype)


def _cancelled(rows: Tensor) -> Tensor:
    """Whole numbers and minus their sum."""
    return torch.cat((rows, -rows.sum(dim=0, keepdim=True)))


def drawn(family: str, decades: float, tasks: int, seed: int) -> Tensor:
    """A Jacobian [T, P] in float64."""
    rows = jacobian(family, tasks, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    exponents = 2.0 * torch.rand(tasks, 1, generator=generator, dtype=torch.float64) - 1.0
    return rows * 10.0 ** (decades * exponents)


def gramian_of(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The Gramian as a method gets it."""
    return rows.to(dtype) @ rows.to(dtype).T


def symmetric(gram: Tensor) -> Tensor:
    """A Gramian in float64 whose entries [i, j] and [j, i] are the same, as products on some CPUs are not."""
    return (gram.double() + gram.double().T) / 2.0
