"""RLW: new random task weights at every update, a baseline that many weighting methods do not beat."""

import torch
from torch import Tensor, nn

from mtrl.combiners._random import normals
from mtrl.combiners.base import LossCombiner


class RLW(LossCombiner):
    """RLW (random loss weighting): each update weighs the tasks by the softmax of standard normal numbers.

    Lin et al., TMLR 2022 (arXiv:2111.10603), with its normal distribution; the weights sum to 1. Deviation
    from the authors' code (LibMTL), whose weights have the same distribution: the numbers come from a counter
    and a stream in the state instead of the global random stream. Give critic and actor a stream each
    (`seed`).
    """

    name = "rlw"
    papers = ("lin2022rlw",)
    reads_losses = False

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def _weights(self, losses: Tensor) -> Tensor:
        drawn = normals(self.num_tasks, self.step, self.stream).softmax(dim=0)
        self.step.add_(1)
        return drawn
