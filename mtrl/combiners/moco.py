"""MoCo: min-norm weights learned from running means of the gradients."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners._state import move_rows
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import gramian, lengths_of, one_over, weighted_sum


class MoCo(PositiveLosses, JacobianCombiner):
    """MoCo (gradient correction): running means y of the gradients, weights that track their min-norm point.

    Fernando et al., ICLR 2023 (openreview dLAYGdKTi2), as LibMTL has it. In update k, y_t moves by beta /
    k^beta_sigma towards loss_t g_t / |g_t|, then w <- softmax(w - gamma / k^gamma_sigma (Y Y' + rho I) w),
    and the direction is Y' w. The authors' own codes differ among themselves: most track the plain gradients
    and project w on the simplex. The softmax and loss_t g_t / |g_t| are those of their Cityscapes code with
    `raw_loss`, in which the steps shrink by epoch.

    Args:
        beta: Step of the tracked gradients (LibMTL: 0.5), at least 1e-9: at 0 they would stay zero.
        beta_sigma: `beta` is divided by the update's number to this power (LibMTL: 0.5).
        gamma: Step of the weights (LibMTL: 0.1).
        gamma_sigma: `gamma` is divided by the update's number to this power (LibMTL: 0.5).
        rho: Pull of the weights to equality (LibMTL: 0).

    As in that code the softmax is taken of weights instead of their logarithms: only the latest step can
    separate weights by more than a factor of e. The paper's text could not be read. The state is [T, P]. With
    `shift` = `minimum` y tracks plain unit gradients if all losses only fall.
    """

    name = "moco"
    papers = ("fernando2023moco",)
    row_state = ("tracked",)
    multiplies_losses = True  # no tracked gradient is longer than the largest loss

    def __init__(
        self,
        *,
        num_tasks: int,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
        shift: Literal["none", "minimum"] = "none",
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.beta = check_number("beta", beta, low=1e-9, high=1.0)
        self.beta_sigma = check_number("beta_sigma", beta_sigma, low=0.0)
        self.gamma = check_number("gamma", gamma, low=0.0)
        self.gamma_sigma = check_number("gamma_sigma", gamma_sigma, low=0.0)
        self.rho = check_number("rho", rho, low=0.0)
        self.tracked: Tensor
        self.w = nn.Buffer(torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64))
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.float64))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        assert losses is not None
        self.prepare(jacobian[0])
        measured = self.origin(losses)
        self.step.add_(1.0)
        moved = self.beta * self.step**-self.beta_sigma
        move_rows(self.tracked, 1.0 - moved, moved * measured * one_over(lengths_of(jacobian)), jacobian)
        slope = torch.add(gramian(self.tracked).to(torch.float64) @ self.w, self.w, alpha=self.rho)
        steps = self.step**-self.gamma_sigma
        self.w.copy_(torch.addcmul(self.w, steps, slope, value=-self.gamma).softmax(dim=0))
        self.last_weights.copy_(self.w)
        return weighted_sum(self.w, self.tracked).to(jacobian.dtype)
