"""The mean of the task gradients: the baseline of every comparison."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mtrl.combiners.base import LossCombiner


class Mean(LossCombiner):
    """Every task weighs 1/T: the direction is the gradient of the mean loss (linear scalarisation)."""

    name: ClassVar[str] = "mean"

    def weights(self, losses: Tensor) -> Tensor:
        """Return 1/T for each task, shape [T]; the losses only give dtype and device."""
        return torch.full_like(losses, 1.0 / self.num_tasks)

    def combine(self, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
        """Return the mean of the rows of the Jacobian [T, P], shape [P]; losses are not needed."""
        del losses
        return jacobian.mean(dim=0)
