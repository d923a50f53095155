"""GradDrop: at each parameter only gradients of one sign survive, drawn at random."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners._random import uniform
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import column_blocks, divisor


class GradDrop(JacobianCombiner):
    """GradDrop (gradient sign dropout): where tasks disagree on a parameter's sign, one sign is kept.

    Chen et al., NeurIPS 2020 (arXiv:2010.06808), equation 1 and algorithm 1. For each parameter, P = (1 +
    sum_t g_t / sum_t |g_t|) / 2 is the positive share and u is uniform on [0, 1). The positive gradients are
    kept if P > u, else the negative ones.

    Args:
        leak: Share of every gradient that passes in any case, the same for all tasks; 1 is the mean.

    Deviations from the paper: it drops gradients of activations, by the sign of activation times gradient
    summed over the batch. Here gradients of parameters are dropped by their own sign, as in the supervised
    code of CAGrad's and SDMGrad's authors. The direction is the mean of what is kept instead of the sum, and
    u comes from a counter in the state instead of the global random stream. `weights` means nothing here.
    """

    name = "graddrop"
    papers = ("chen2020graddrop",)

    def __init__(self, *, num_tasks: int, leak: float = 0.0) -> None:
        super().__init__(num_tasks=num_tasks)
        self.leak = check_number("leak", leak, low=0.0, high=1.0)
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        kept = [self._kept(jacobian[:, part], part.start) for part in column_blocks(jacobian)]
        self.step.add_(1)
        return torch.cat(kept)

    def _kept(self, rows: Tensor, begin: int) -> Tensor:
        drawn = uniform(rows.shape[1], self.step, self.stream, begin)
        positive = rows.clamp(min=0.0).mean(dim=0)
        negative = rows.clamp(max=0.0).mean(dim=0)
        share = positive / divisor(positive - negative)
        return torch.where(share > drawn, positive, negative).lerp(positive + negative, self.leak)
