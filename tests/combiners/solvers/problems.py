"""Gramians on which solvers fail, made anew for the solvers' tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.matrices import FAMILIES, jacobian

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
