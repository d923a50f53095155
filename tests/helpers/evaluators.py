"""What stands in for a network's gradients where a test calls `direction`: every gradient is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Asked(NamedTuple):
    """One request for a Jacobian."""

    offset: Tensor | None
    batch: int
    tasks: Tensor | None


class Evaluator:
    """Losses [T] and gradients [T, P], also at moved parameters, without heads; notes what it is asked for.

    Attributes:
        asked: every request for a Jacobian.
        backwards: number of weighted gradients.
    """

    losses: Tensor
    parameters: Tensor
    temperatures: Tensor | None = None

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.backwards = 0

    def gradients_at(self, offset: Tensor | float, batch: int = 0) -> Tensor:
        """Return the gradients [T, P] of all tasks at parameters moved by `offset`, [P] or [T, P]."""
        raise NotImplementedError

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        none = self.losses.new_empty(len(self.losses), 0)
        return none, none

    def __call__(self, offset: Tensor | None = None, batch: int = 0, tasks: Tensor | None = None) -> Tensor:
        self.asked.append(Asked(offset, batch, tasks))
        rows = self.gradients_at(0.0 if offset is None else offset, batch)
        return rows if tasks is None else rows[tasks]

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        self.backwards += 1
        return weights_of(self.losses).to(self.losses.dtype) @ self.gradients_at(0.0)

    def pooled(self, order: Tensor, singles: int) -> Tensor:
        rows = self.gradients_at(0.0)
        alone = self(tasks=order[:singles]) if singles else rows[:0]
        self.backwards += 1
        return torch.cat((alone, rows[order[singles:]].mean(dim=0, keepdim=True)))


class Linear(Evaluator):
    """The same gradients everywhere: `rows` in every batch, or with `further` those of each batch."""

    def __init__(self, rows: Tensor, *further: Tensor, losses: Tensor | None = None) -> None:
        super().__init__()
        self.rows, self._batches = rows, (rows, *further)
        self.losses = torch.arange(1.0, len(rows) + 1.0, dtype=rows.dtype) if losses is None else losses
        self.parameters = torch.ones_like(rows[0])
        norms = rows.double().norm(dim=1)
        mean = norms.mean()
        self.temperatures = 1.0 + norms / torch.where(mean > 0.0, mean, 1.0)

    def gradients_at(self, offset: Tensor | float, batch: int = 0) -> Tensor:
        return self._batches[batch if len(self._batches) > 1 else 0]


class Quadratics(Evaluator):
    """Losses 1/2 theta' A_t theta: gradients A_t theta, whose change under a step e is exactly A_t e."""

    def __init__(self, tasks: int, parameters: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        factors = torch.randn(tasks, parameters, parameters, generator=generator, dtype=torch.float64)
        self.curvatures = factors @ factors.mT
        self.parameters = torch.randn(parameters, generator=generator, dtype=torch.float64)
        self.losses = self.gradients_at(0.0) @ self.parameters / 2.0

    def gradients_at(self, offset: Tensor | float, batch: int = 0) -> Tensor:
        points = self.parameters + offset * torch.ones(len(self.curvatures), 1, dtype=torch.float64)
        return torch.einsum("tpq,tq->tp", self.curvatures, points)
