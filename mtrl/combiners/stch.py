"""STCH: a smooth maximum of the relative log-losses."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_count, check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners.base import LossCombiner


class STCH(PositiveLosses, LossCombiner):
    """STCH (smooth Tchebycheff scalarisation): minimises mu log sum_t exp(log(loss_t / z_t) / mu).

    Lin et al., ICML 2024 (arXiv:2402.19078), in the form of the authors' multi-task code as LibMTL has it: a
    task weighs p_t / loss_t with p the softmax of log(loss_t / z_t) / mu. z_t is its mean loss in a warm-up,
    during which the mean of the log-losses is minimised.

    Args:
        mu: Smoothness; towards 0 only the task with the largest relative loss counts (LibMTL: 1).
        warmup: Updates before z is fixed (authors: five epochs, the last of which gives z).

    Deviations: the warm-up counts updates, and z is the mean over all of it; weights are 1 / T of the code's.
    The paper's text could not be read. With `shift` = `minimum` losses that only fall all measure 1: the
    tasks then weigh equal, and STCH is the mean.
    """

    name = "stch"
    papers = ("lin2024stch",)

    def __init__(
        self,
        *,
        num_tasks: int,
        mu: float = 1.0,
        warmup: int = 1000,
        shift: Literal["none", "minimum"] = "none",
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.mu = check_number("mu", mu, low=1e-3)
        self.warmup = check_count("warmup", warmup)
        self.mean = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.float64))

    def _weights(self, losses: Tensor) -> Tensor:
        measured = self.origin(losses)
        warming = self.step < self.warmup
        self.step.add_(1.0)
        self.mean.copy_(torch.where(warming, self.mean.lerp(measured, 1.0 / self.step), self.mean))
        relative = torch.softmax((measured / self.mean).log() / self.mu, dim=0)
        shares = torch.where(warming, 1.0 / self.num_tasks, relative)
        weights: Tensor = shares / measured
        return weights
