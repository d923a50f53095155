"""BMTL: tasks with large losses weigh more."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice, check_decay, check_number
from mtrl.combiners.base import LossCombiner
from mtrl.combiners.solvers.gramian import divisor


class BMTL(LossCombiner):
    """BMTL (balanced multi-task learning): weights are the softmax of the losses over a temperature.

    Liang and Zhang, 2020 (arXiv:2002.04792): the objective is the sum of exp(loss_t / temperature), in which
    task t's gradient weighs exp(loss_t / temperature) / temperature.

    Args:
        temperature: Difference of losses, in units of `unit`, that makes one task weigh e times another.
            Third parties' code has 50; SAC's losses differ far less, so that tasks weigh almost the same.
        unit: `loss`, or `deviation`: the running root mean square of the losses' deviation over the tasks
            (ours), for which a temperature of about 1 suits losses of any scale.
        decay: Share of the running mean square that one update keeps.

    Deviation from the paper, whose text could not be read: the weights sum to 1, while those of the objective
    grow with the losses. Losses may have any sign: a number added to all of them changes nothing.
    """

    name = "bmtl"
    papers = ("liang2020bmtl",)

    def __init__(
        self,
        *,
        num_tasks: int,
        temperature: float = 50.0,
        unit: Literal["loss", "deviation"] = "loss",
        decay: float = 0.99,
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.temperature = check_number("temperature", temperature, low=1e-6)
        check_choice("unit", unit, ("loss", "deviation"))
        self.unit = unit
        self.decay = check_decay("decay", decay)
        self.variance = nn.Buffer(torch.zeros(1, dtype=torch.float64))
        self.share = nn.Buffer(torch.zeros(1, dtype=torch.float64))  # of the mean that is data

    def _weights(self, losses: Tensor) -> Tensor:
        exact = losses.to(torch.float64)
        apart = exact - exact.amax()
        if self.unit == "deviation":
            apart = apart / self._deviation(exact)
        return torch.softmax(apart / self.temperature, dim=0)

    def _deviation(self, losses: Tensor) -> Tensor:
        self.variance.lerp_(losses.var(correction=0), 1.0 - self.decay)
        self.share.mul_(self.decay).add_(1.0 - self.decay)
        # 0 if all losses were always equal; then the weights are equal in any unit.
        return divisor((self.variance / self.share).sqrt())
