"""ExcessMTL: tasks far from their best possible loss weigh more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import weighted_sum

_EPS = 1e-7  # under the authors' square root


class ExcessMTL(JacobianCombiner):
    """ExcessMTL (excess risks): w_t grows by exp(eta e_t / e_t0), e_t what task t can still gain, estimated.

    He et al., ICML 2024 (openreview JzWFmMySpn), as LibMTL has it from the authors' code: with S_t the sum of
    all squared gradients so far, per parameter, e_t = sum_p g_tp^2 / sqrt(S_tp + 1e-7), and e_t0 is that of
    the first update, which leaves the weights equal; afterwards weights are scaled back to a fixed sum.

    Args:
        eta: Step size of the logarithms of the weights (LibMTL: 0.01).

    Deviations: weights sum to 1 instead of T. A task whose first gradient is zero keeps e_t / e_t0 = 0. The
    sums only grow, so that estimates shrink over a long run as AdaGrad's steps do. The paper's text could not
    be read. The state is [T, P].
    """

    name = "excess_mtl"
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
        squares = jacobian.square()
        self.squares.add_(squares)
        excess = (squares / (self.squares + _EPS).sqrt()).sum(dim=1).to(torch.float64)
        first = self.step == 0
        self.step.add_(1)
        self.initial.copy_(torch.where(first, excess, self.initial))
        relative = torch.where(self.initial > 0.0, excess / self.initial, 0.0)
        # Logits, of which a common part does not count: products of weights would leave the range of numbers.
        moved = self.logits + self.eta * relative
        self.logits.copy_(torch.where(first, self.logits, moved - moved.amax()))
        weights = torch.softmax(self.logits, dim=0)
        self.last_weights.copy_(weights)
        return weighted_sum(weights, jacobian)
