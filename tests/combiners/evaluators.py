"""Problems whose gradients are known everywhere, as `direction` asks for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Evaluator:
    """Losses and gradients [T, P] at moved parameters; counts what it is asked for.

    Attributes:
        asked: for each Jacobian the offset, the batch and the tasks.
        backwards: number of weighted gradients.
    """

    losses: Tensor
    parameters: Tensor
    temperatures: Tensor | None = None

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor | None, int, Tensor | None]] = []
        self.backwards = 0

    def gradients_at(self, offset: Tensor | float) -> Tensor:
        raise NotImplementedError  # not of those that answer each call themselves

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        none = torch.zeros(len(self.losses), 0, dtype=self.losses.dtype)
        return none, none

    def __call__(
        self,
        offset: Tensor | None = None,
        batch: int = 0,
        tasks: Tensor | None = None,
        head_offset: Tensor | None = None,
    ) -> Tensor:
        self.asked.append((offset, batch, tasks))
        rows = self.gradients_at(0.0 if offset is None else offset)
        return rows if tasks is None else rows[tasks]

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        self.backwards += 1
        return weights_of(self.losses).to(self.losses.dtype) @ self.gradients_at(0.0)


class Linear(Evaluator):
    """The same gradients everywhere and in every batch."""

    def __init__(self, rows: Tensor, losses: Tensor | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.losses = torch.arange(1.0, len(rows) + 1.0, dtype=rows.dtype) if losses is None else losses
        self.parameters = torch.ones(rows.shape[1], dtype=rows.dtype)
        norms = rows.double().norm(dim=1)
        mean = norms.mean()
        self.temperatures = 1.0 + norms / torch.where(mean > 0.0, mean, 1.0)

    def gradients_at(self, offset: Tensor | float) -> Tensor:
        return self.rows


class Quadratics(Evaluator):
    """Losses 1/2 theta' A_t theta: gradients A_t theta, whose change under a step e is exactly A_t e."""

    def __init__(self, tasks: int, parameters: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        factors = torch.randn(tasks, parameters, parameters, generator=generator, dtype=torch.float64)
        self.curvatures = factors @ factors.mT
        self.parameters = torch.randn(parameters, generator=generator, dtype=torch.float64)
        self.losses = self.gradients_at(0.0) @ self.parameters / 2.0

    def gradients_at(self, offset: Tensor | float) -> Tensor:
        points = self.parameters + offset * torch.ones(len(self.curvatures), 1, dtype=torch.float64)
        return torch.einsum("tpq,tq->tp", self.curvatures, points)
