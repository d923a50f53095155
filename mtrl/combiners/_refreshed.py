"""Methods that solve for their weights once in a while, with one weighted backward pass in between."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from mtrl.combiners._checks import check_count
from mtrl.combiners.base import GramCombiner, JacobianAt


class Refreshed(GramCombiner):
    """Weights `_solve(gram)` of every `refresh_every`-th update, kept in between.

    In between an update computes no Jacobian, only the gradient of the weighted loss. Which of the two is due
    is known on the host, so that with `refresh_every` above 1 one CUDA graph cannot hold an update.
    """

    def __init__(self, *, num_tasks: int, refresh_every: int) -> None:
        super().__init__(num_tasks=num_tasks)
        self.refresh_every = check_count("refresh_every", refresh_every)
        self.capturable = refresh_every == 1
        self.until_solve = 0  # updates
        self.kept: Tensor
        self.register_buffer("kept", torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64))

    @property
    def gramian_suffices(self) -> bool:
        """Whether every update needs a Gramian."""
        return self.refresh_every == 1

    @abstractmethod
    def _solve(self, gram: Tensor) -> Tensor:
        """Return the weights [T] for the Gramian [T, T]."""

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P]; takes a Jacobian only where weights are due."""
        if self.until_solve == 0:
            return super().direction(jacobian_at)
        self.until_solve -= 1
        self.last_weights.copy_(self.kept)
        return jacobian_at.weighted(lambda losses: self.kept)

    def _weights(self, gram: Tensor) -> Tensor:
        if self.until_solve == 0:
            self.kept.copy_(self._solve(gram))
            self.until_solve = self.refresh_every
        self.until_solve -= 1
        return self.kept.clone()

    def reset(self) -> None:
        """Forget the kept weights: the next update solves."""
        super().reset()
        self.until_solve = 0
        self.kept.fill_(1.0 / self.num_tasks)

    def get_extra_state(self) -> Tensor:
        """Return in how many updates the next solve is due, for `state_dict`."""
        return torch.tensor(self.until_solve)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up `get_extra_state`."""
        self.until_solve = int(state)
