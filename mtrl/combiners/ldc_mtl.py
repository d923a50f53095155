"""LDC-MTL: learned weights that even out the weighted losses."""

import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners._state import Learned
from mtrl.combiners.base import LossCombiner


class LDCMTL(LossCombiner):
    """LDC-MTL (loss discrepancy control): w is learned so that neighbouring tasks' weighted losses are alike.

    Xiao et al., 2025 (arXiv:2502.08585), the penalised form of its two levels: parameters and weights descend
    together on sum_t w_t loss_t + lam sum_t |w_t loss_t - w_{t+1} loss_{t+1}|, with one backward pass. The
    second sum is over neighbouring tasks, so the tasks' order matters.

    Args:
        lam: Weight of the discrepancies next to the losses themselves (ours; the paper tunes it).
        lr: Learning rate of the weights' logits, by Adam (ours).

    The paper learns the weights by a small network on the losses. Here w is a softmax of one logit per task,
    zero at first, so that the weights sum to 1. Losses may have any sign.
    """

    name = "ldc_mtl"
    papers = ("xiao2025ldcmtl",)

    def __init__(self, *, num_tasks: int, lam: float = 1.0, lr: float = 0.01) -> None:
        super().__init__(num_tasks=num_tasks)
        self.lam = check_number("lam", lam, low=0.0)
        self.logits = Learned(num_tasks, lr=check_number("lr", lr, low=0.0))

    def _weights(self, losses: Tensor) -> Tensor:
        """Return weights [T] that sum to 1 for losses [T]; then they take their step."""
        weights, exact = torch.softmax(self.logits.value, dim=0), losses.to(torch.float64)
        weighted = weights * exact
        signs = torch.sign(-weighted.diff())  # [T - 1], of each task's discrepancy to the next
        none = signs[:0].new_zeros(1)
        slope = exact * (1.0 + self.lam * (torch.cat((signs, none)) - torch.cat((none, signs))))
        # The gradient of the logits, through the softmax.
        self.logits.update(weights * (slope - weights @ slope))
        return weights
