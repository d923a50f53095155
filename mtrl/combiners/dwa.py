"""DWA: tasks whose losses fall slowly weigh more."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_count, check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners.base import LossCombiner


class DWA(PositiveLosses, LossCombiner):
    """DWA (dynamic weight average): weights are the softmax of L_{t-1} / L_{t-2} over a temperature.

    Liu, Johns and Davison, CVPR 2019 (arXiv:1803.10704), equation 7. L_{t-1} and L_{t-2} are the task's mean
    losses in the last two complete windows of updates before the present update, whose losses thus do not
    enter its own weights. Until there are two, the tasks weigh equal.

    Args:
        temperature: Above 1 the weights are more equal (paper: 2).
        window: Updates whose mean loss is one L; the paper's is an epoch. With 1 the loss is compared with
            the one before, which is noisy.

    Weights sum to 1 instead of T. With `shift` = `minimum` losses that only fall all measure 1: the tasks
    then weigh equal, and DWA is the mean.
    """

    name = "dwa"
    papers = ("liu2019dwa",)

    def __init__(
        self,
        *,
        num_tasks: int,
        temperature: float = 2.0,
        window: int = 1,
        shift: Literal["none", "minimum"] = "none",
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.temperature = check_number("temperature", temperature, low=1e-6)
        self.window = check_count("window", window)
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.float64))
        self.running = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))  # mean of the present window
        self.latest = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))  # mean of the last window
        self.ratio = nn.Buffer(torch.ones(num_tasks, dtype=torch.float64))  # of the last two windows

    def _weights(self, losses: Tensor) -> Tensor:
        """Return weights [T] that sum to 1, from former losses; then the losses [T] join their window."""
        weights = torch.softmax(self.ratio / self.temperature, dim=0)
        place = self.step.remainder(self.window) + 1.0  # of this update in its window
        self.step.add_(1.0)
        self.running.lerp_(self.origin(losses), 1.0 / place)  # at place 1 it forgets the window before
        complete, second = place == self.window, self.step >= 2.0 * self.window
        ratio = self.running / torch.where(second, self.latest, 1.0)
        self.ratio.copy_(torch.where(complete & second, ratio, self.ratio))
        self.latest.copy_(torch.where(complete, self.running, self.latest))
        return weights
