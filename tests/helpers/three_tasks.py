"""A model of three tasks with heads, and losses of it that go wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtrl import mtl_step
from mtrl.combiners import COMBINERS, make_combiner

TASKS = 3
INPUTS = torch.linspace(-1.0, 1.0, 24, dtype=torch.float64).view(12, 2)
TARGETS = torch.stack((INPUTS.sum(1), 3.0 * INPUTS[:, 0], INPUTS.prod(1) + 1.0))

# One method of each family: losses alone, losses again after the step, Gramian, Jacobian, an optimiser of its
# own, gradients at moved parameters, several batches, some of the tasks.
FAMILIES = ["mean", "famo", "cagrad", "pcgrad", "adatask", "fs_mtl", "modo", "cagrad_fast"]


def all_methods(*also: str, but: frozenset[str] = frozenset()) -> pytest.MarkDecorator:
    """Every method but those in `but`; slow where it is neither the one of its family nor one of `also`."""
    quick = {*FAMILIES, *also}
    names = sorted(COMBINERS.keys() - but)
    assert quick <= COMBINERS.keys()
    params = [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("method", params)


class Problem:
    """A body and a torso that three tasks share, a head for each, and a module that no task uses."""

    def __init__(self, name: str = "mean", optimizer: Any = torch.optim.Adam, **options: Any) -> None:
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 4)
        self.model = nn.Sequential(self.first, nn.Tanh(), self.second, nn.Tanh()).double()
        self.heads = [nn.Linear(4, 1).double() for _ in range(TASKS)]
        self.other = nn.Linear(2, 2).double()
        self.rows = torch.arange(len(INPUTS))
        self.combiner = make_combiner(name, num_tasks=TASKS)
        parts = (self.model, *self.heads, self.other)
        self.optimizer = optimizer([p for part in parts for p in part.parameters()], lr=0.05, **options)

    def losses(self, batch: int = 0) -> list[Tensor]:
        features = self.model(INPUTS[self.rows])
        return [
            (head(features).squeeze(-1) - target[self.rows]).square().mean()
            for head, target in zip(self.heads, TARGETS, strict=True)
        ]

    def step(self, losses: Callable[[int], Any] | None = None, **options: Any) -> Tensor:
        arguments: dict[str, Any] = {"model": self.model, "heads": self.heads, "optimizer": self.optimizer}
        return mtl_step(self.combiner, self.losses if losses is None else losses, **(arguments | options))

    def values(self) -> Tensor:
        parts = (self.model, *self.heads, self.other)
        return torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])


def nan_loss(problem: Problem) -> Callable[[int], list[Tensor]]:
    return lambda batch: [problem.losses()[0], problem.losses()[1] * torch.nan, problem.losses()[2]]


def third_free(problem: Problem) -> list[Tensor]:
    return [*problem.losses()[:2], problem.model(INPUTS).square().mean()]
