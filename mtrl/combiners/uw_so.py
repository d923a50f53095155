"""UW-SO: a softmax, with a temperature, of the optimal weights of uncertainty weighting."""

from typing import Literal

import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners.base import LossCombiner


class UWSO(PositiveLosses, LossCombiner):
    """UW-SO (soft optimal uncertainty weighting): weights are the softmax of 1 / loss_t over a temperature.

    Kirchdorfer et al., 2024 (arXiv:2408.07985): for given losses the weights that minimise the objective of
    `uw` are proportional to 1 / loss_t; the softmax of these is what a task weighs.

    Args:
        temperature: Above 1 the weights are more equal. It is in units of 1 / loss, so its value depends on
            the losses' scale (the paper tunes it; 1 is ours).

    With `shift` = `minimum` no inverse exceeds 1.
    """

    name = "uw_so"
    papers = ("kirchdorfer2024uwso",)

    def __init__(
        self, *, num_tasks: int, temperature: float = 1.0, shift: Literal["none", "minimum"] = "none"
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.temperature = check_number("temperature", temperature, low=1e-6)

    def _weights(self, losses: Tensor) -> Tensor:
        inverse = self.origin(losses).reciprocal()
        return torch.softmax(inverse / self.temperature, dim=0)
