"""The mean of the task gradients: the baseline of every comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.combiners.base import LossCombiner


class Mean(LossCombiner):
    """Every task weighs 1/T: the direction is the gradient of the mean loss (linear scalarisation)."""

    name = "mean"
    reads_losses = False

    def _weights(self, losses: Tensor) -> Tensor:
        """Return 1/T for each task, shape [T]; the losses only give dtype and device."""
        return torch.full_like(losses, 1.0 / self.num_tasks)
