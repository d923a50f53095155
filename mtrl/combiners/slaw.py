"""SLAW: weighs tasks by the inverse of how much their losses vary."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import LossCombiner


class SLAW(LossCombiner):
    """SLAW: a task weighs the inverse of its loss's running deviation, a cheap stand-in for gradient norms.

    Crawshaw and Kosecka, 2021 (arXiv:2109.08218), algorithm 1, with the running mean and deviation of the
    authors' code: plain averages until 1 / step falls below 1 - decay, then exponential ones.

    Args:
        decay: Share of the averages that one update keeps (authors: 0.99).

    Weights sum to 1 instead of T and are equal at the first call, where no deviation is known. Losses may
    have any sign. Deviation from the authors' code: the variance is updated directly, not as a difference.
    """

    name = "slaw"
    papers = ("crawshaw2021slaw",)

    def __init__(self, *, num_tasks: int, decay: float = 0.99) -> None:
        super().__init__(num_tasks=num_tasks)
        self.decay = check_number("decay", decay, low=0.0, high=1.0)
        self.average = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.variance = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.float64))

    def _weights(self, losses: Tensor) -> Tensor:
        self.step.add_(1.0)
        rate = self.step.reciprocal().clamp(min=1.0 - self.decay)
        change = losses.to(torch.float64) - self.average
        self.average.add_(rate * change)
        self.variance.add_(rate * change.square()).mul_(1.0 - rate)
        # The authors' lower bound. All deviations are 0 at the first call, which makes the weights equal.
        inverse = self.variance.sqrt().clamp(min=1e-5).reciprocal()
        return inverse / inverse.sum()
