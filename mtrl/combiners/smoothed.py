"""Smoothed weights: a running mean of what another method solves for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import make_gram_base
from mtrl.combiners.base import GramCombiner


class Smoothed(GramCombiner):
    """Smoothed weights: w <- decay w + (1 - decay) base(M), and the gradients are weighted by w.

    Zhou et al., NeurIPS 2022, "On the convergence of stochastic multi-objective gradient manipulation and
    beyond" (CR-MOGM): it corrects solved weights for the noise of one batch, around any method whose weights
    depend on the Gramian alone. As in TorchJD's version, w starts as the first solve.

    Args:
        base: Name of the method that solves for the weights.
        base_options: Arguments of the base method.
        decay: Share of the old weights that one update keeps; 0 is the base method.

    Weights are used as they were solved, also for a base that weighs by one over the gradients' lengths, such
    as `nash_mtl`: after a batch with a gradient of 1e-8 steps are up to 1e7 times as long for many updates.
    Deviation from the paper, whose text could not be read: `decay` is constant. According to TorchJD's
    documentation the paper's rises towards 1 as the learning rate falls.
    """

    name = "smoothed"
    papers = ("zhou2022crmogm",)

    def __init__(
        self,
        *,
        num_tasks: int,
        base: str = "mgda",
        base_options: Mapping[str, Any] | None = None,
        decay: float = 0.9,
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.base = make_gram_base(self.name, base, base_options, num_tasks)
        self.decay = check_number("decay", decay, low=0.0, high=1.0)
        self.kept = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.started = nn.Buffer(torch.zeros(1, dtype=torch.float64))

    def _weights(self, gram: Tensor) -> Tensor:
        solved = self.base.weights(gram).to(torch.float64)
        self.kept.copy_(torch.where(self.started > 0.0, solved.lerp(self.kept, self.decay), solved))
        self.started.fill_(1.0)
        return self.kept.clone()
