"""Families of Jacobians [T, P] on which solvers differ: easy, conflicting, badly scaled, degenerate."""

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


def _near_opposite(distance: float) -> Family:
    """One line in alternating directions, plus normal noise times `distance`."""

    def family(generator: torch.Generator, tasks: int, parameters: int) -> Tensor:
        line = _normal(generator, 1, parameters)
        signs = (-1.0) ** torch.arange(tasks, dtype=torch.float64).unsqueeze(-1)
        return signs * line + distance * _normal(generator, tasks, parameters)

    return family


def _opposed_pairs(distance: float) -> Family:
    """Tasks in pairs, each the opposite of the other but for a part of its length."""

    def family(generator: torch.Generator, tasks: int, parameters: int) -> Tensor:
        rows = _normal(generator, tasks, parameters)
        rest = distance * _normal(generator, tasks // 2, parameters)
        rows[1::2] = rest - rows[: tasks - tasks % 2 : 2]
        return rows

    return family


def _zero_row(generator: torch.Generator, tasks: int, parameters: int) -> Tensor:
    rows = _normal(generator, tasks, parameters)
    rows[tasks // 2] = 0.0
    return rows


FAMILIES: dict[str, Family] = {
    "iid": _iid,
    "common": _common,
    "conflicting": _conflicting,
    "spread_2": _spread(2.0),
    "spread_3": _spread(3.0),
    "deficient": _deficient,
}


# For the accuracy of our own solvers; peers and, at eight decades of norms, the conic solver give up there.
EXTREME: dict[str, Family] = {
    "spread_4": _spread(4.0),
    "near_opposite_2": _near_opposite(1e-2),
    "near_opposite_3": _near_opposite(1e-3),
    "near_opposite_5": _near_opposite(1e-5),
    "opposed_pairs_2": _opposed_pairs(1e-2),
    "zero_row": _zero_row,
}


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
