"""Families of Jacobians [T, P] on which solvers differ: easy, conflicting, badly scaled, degenerate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Family = Callable[[torch.Generator, int, int], Tensor]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _iid(generator: torch.Generator, tasks: int, parameters: int) -> Tensor:
    return _normal(generator, tasks, parameters)


def _common(generator: torch.Generator, tasks: int, parameters: int) -> Tensor:
    return _normal(generator, tasks, parameters) + 3.0 * _normal(generator, 1, parameters)


def _conflicting(generator: torch.Generator, tasks: int, parameters: int) -> Tensor:
    rows = _normal(generator, tasks, parameters)
    return rows - 0.9 * rows.mean(dim=0)


def _spread(decades: float) -> Family:
    def family(generator: torch.Generator, tasks: int, parameters: int) -> Tensor:
        exponents = decades * (2.0 * torch.rand(tasks, 1, generator=generator, dtype=torch.float64) - 1.0)
        return _normal(generator, tasks, parameters) * 10.0**exponents

    return family


def _deficient(generator: torch.Generator, tasks: int, parameters: int) -> Tensor:
    rank = max(tasks // 2, 2)
    return _normal(generator, tasks, rank) @ _normal(generator, rank, parameters)


FAMILIES: dict[str, Family] = {
    "iid": _iid,
    "common": _common,
    "conflicting": _conflicting,
    "spread_2": _spread(2.0),
    "spread_3": _spread(3.0),
    "deficient": _deficient,
}


# Norms over eight decades, for the accuracy of our own solvers; peers and the conic solver give up there.
EXTREME: dict[str, Family] = {"spread_4": _spread(4.0)}


def jacobian(family: str, tasks: int, seed: int, parameters: int | None = None) -> Tensor:
    """A Jacobian [tasks, parameters] in float64; 4 parameters per task unless told."""
    generator = torch.Generator().manual_seed(seed)
    return (FAMILIES | EXTREME)[family](generator, tasks, parameters or 4 * tasks)


def widened(rows: Tensor, parameters: int, seed: int) -> Tensor:
    """Return a float32 Jacobian [T, parameters] with about the Gramian of `rows` [T, Q]."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.arange(parameters) % rows.shape[1]
    signs = torch.randn(parameters, generator=generator) * (rows.shape[1] / parameters) ** 0.5
    wide: Tensor = rows.float()[:, columns] * signs
    return wide
