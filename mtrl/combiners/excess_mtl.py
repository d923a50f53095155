"""ExcessMTL: tasks far from their best possible loss weigh more."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import column_blocks, weighted_sum


class ExcessMTL(JacobianCombiner):
    """ExcessMTL: w_t grows by exp(eta e_t / e_t0) for an estimate e_t of what task t can still gain.

    He et al., ICML 2024 (openreview JzWFmMySpn), as LibMTL has it from the authors' code: e_t = sum_p g_tp^2
    / sqrt(S_tp + 1e-7), where S_t is the sum of all squared gradients so far, per parameter. The first update
    gives e_t0 and leaves the weights equal; later ones scale the weights back to a fixed sum.

    Args:
        eta: Step size of the logarithms of the weights (LibMTL: 0.01).

    Deviations: weights sum to 1 instead of T. A task whose first gradient is zero keeps e_t / e_t0 = 0. The
    sums only grow, so estimates shrink over a long run as AdaGrad's steps do. The paper's text could not be
    read. The state is [T, P].
    """

    name = "excess_mtl"
    papers = ("he2024excessmtl",)
    multiplies_gradients = True
    row_state = ("squares",)

    def __init__(self, *, num_tasks: int, eta: float = 0.01) -> None:
        super().__init__(num_tasks=num_tasks)
        self.eta = check_number("eta", eta, low=0.0)
        self.squares: Tensor
        self.initial = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.logits = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        self.prepare(jacobian[0])
        excess = torch.zeros_like(self.initial)
        for columns in column_blocks(jacobian):
            sums = self.squares[:, columns]
            squares = jacobian[:, columns].to(sums.dtype).square()
            sums.add_(squares)
            excess = excess + squares.div_((sums + 1e-7).sqrt_()).sum(dim=1)
        first = self.step == 0
        self.step.add_(1)
        self.initial.copy_(torch.where(first, excess, self.initial))
        relative = torch.where(self.initial > 0.0, excess / self.initial, 0.0)
        # The maximum is subtracted, which changes no weight: the logits would grow without end otherwise.
        moved = self.logits + self.eta * relative
        self.logits.copy_(torch.where(first, self.logits, moved - moved.amax()))
        weights = torch.softmax(self.logits, dim=0)
        self.last_weights.copy_(weights)
        return weighted_sum(weights, jacobian)
