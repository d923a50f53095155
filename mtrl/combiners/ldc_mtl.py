"""LDC-MTL: learned weights that even out the weighted losses."""

import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners._state import Learned
from mtrl.combiners.base import LossCombiner


class LDCMTL(LossCombiner):
    """LDC-MTL (loss discrepancy control): weighted losses that descend and stay near their neighbours'.

    Xiao et al., 2025 (arXiv:2502.08585), the penalised form of its two levels: parameters and weights descend
    together on sum_t w_t loss_t + lam sum_t |w_t loss_t - w_{t+1} loss_{t+1}|, with one backward pass. The
    second sum is over neighbouring tasks, so the tasks' order matters. A task whose weighted loss is below
    both of its neighbours' ascends if `lam` is above 1/2.

    Args:
        lam: Weight of the discrepancies next to the losses (authors' code: .01 to .1, by benchmark).
        lr: Learning rate of the weights' logits, by Adam (ours).

    The paper learns the weights by a small network on the losses; its code also divides losses by their first
    values on two of four benchmarks. Here w is a softmax of one logit per task, zero at first, so that the
    weights sum to 1, and losses are taken as they are. Losses may have any sign.
    """

    name = "ldc_mtl"
    papers = ("xiao2025ldcmtl",)

    def __init__(self, *, num_tasks: int, lam: float = 0.05, lr: float = 0.01) -> None:
        super().__init__(num_tasks=num_tasks)
        self.lam = check_number("lam", lam, low=0.0)
        self.logits = Learned(num_tasks, lr=check_number("lr", lr, low=0.0))

    def _weights(self, losses: Tensor) -> Tensor:
        """Return the derivatives [T] of the objective by the losses [T]; then the logits take their step."""
        weights, exact = torch.softmax(self.logits.value, dim=0), losses.to(torch.float64)
        signs = torch.sign(-(weights * exact).diff())  # [T - 1], of each task's discrepancy to the next
        none = signs[:0].new_zeros(1)
        # The derivatives of the objective by the weighted losses.
        factors = 1.0 + self.lam * (torch.cat((signs, none)) - torch.cat((none, signs)))
        slope = exact * factors
        # The gradient of the logits, through the softmax.
        self.logits.update(weights * (slope - weights @ slope))
        return weights * factors
