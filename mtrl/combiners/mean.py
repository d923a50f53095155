"""The mean of the task gradients: the baseline of every comparison."""

import torch
from torch import Tensor

from mtrl.combiners.base import LossCombiner


class Mean(LossCombiner):
    """Every task weighs 1/T: the direction is the gradient of the mean loss (linear scalarisation)."""

    name = "mean"
    reads_losses = False

    def _weights(self, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1.0 / self.num_tasks)
