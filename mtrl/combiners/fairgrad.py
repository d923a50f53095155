"""FairGrad: the direction that is alpha-fair to the tasks' improvements."""

from typing import Literal

import torch
from torch import Tensor

from mtrl.combiners._checks import check_choice, check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.bargaining import bargain_residual, bargaining_weights
from mtrl.combiners.solvers.gramian import rounding_ridge

_STEPS, _MOMENTUM = 20, 0.5  # of the published inner loop, which does not converge


class FairGrad(GramCombiner):
    """FairGrad: the alpha-fair direction, which favours the tasks that improve least the more alpha grows.

    Ban and Ji, ICML 2024 (arXiv:2402.15638), algorithm 1: weights w > 0 with M w = w^(-1/alpha) for the
    Gramian M. alpha = 1 is the Nash bargaining solution, of norm sqrt(T); alpha -> 0 approaches the sum and
    alpha -> infinity the best worst improvement. Gradients s times as long give a direction s^((1 - alpha) /
    (1 + alpha)) times as long: for alpha = 2 it grows as they shrink.

    Args:
        alpha: Degree of fairness, in [0.5, 5] (2 in the authors' RL runs).
        solver: `exact` solves for w; `paper` takes 20 clipped SGD steps from equal weights on the unscaled
            Gramian (authors' RL code); for small gradients the weights remain equal.

    Where no exact solution exists (Pareto-stationary parameters) a ridge at the rounding level of the
    Gramian's dtype bounds the weights. Near that, where gradients cancel up to 1e-5 of their length (alpha 5:
    1e-4; single precision: 1e-2), the Gramian does not determine the solution to 1e-5; `residual` tells the
    error, up to 1. Tasks with a zero gradient weigh 0.
    """

    name = "fairgrad"
    papers = ("ban2024fairgrad",)

    def __init__(
        self, *, num_tasks: int, alpha: float = 2.0, solver: Literal["exact", "paper"] = "exact"
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.alpha = check_number("alpha", alpha, low=0.5, high=5.0)
        check_choice("solver", solver, ("exact", "paper"))
        self._paper = solver == "paper"

    def _weights(self, gram: Tensor) -> Tensor:
        if self._paper:
            return _published(gram, self.alpha)
        return bargaining_weights(gram, ridge=rounding_ridge(gram), alpha=self.alpha)

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the largest |w_i^(1/alpha) (Mw)_i - 1| (see `bargain_residual`)."""
        residual = bargain_residual(self._last_gram, self.last_weights, alpha=self.alpha)
        return {**super().metrics(), "residual": residual}


@torch.no_grad()
def _published(gram: Tensor, alpha: float) -> Tensor:
    """Return the weights w [T] in float64 for FairGrad's fixed point, as its authors' RL code gets them.

    Momentum SGD of step size 0.1 on |Mw - w^(-1/alpha)|^2 from equal weights, the gradient's norm clipped to
    1, w kept above 1e-8; the best of the first 20 points. M is not scaled.
    """
    gram, power = gram.to(torch.float64), 1.0 / alpha
    w = torch.full_like(gram[0], 1.0 / len(gram))
    velocity = torch.zeros_like(w)
    best, lowest = w, torch.full_like(w[0], torch.inf)
    for step in range(_STEPS):
        shifted = w + 1e-8
        pull = shifted.pow(-power)
        miss = gram @ w - pull
        value = torch.dot(miss, miss)
        best = torch.where(value < lowest, w, best)
        lowest = torch.fmin(value, lowest)
        if step < _STEPS - 1:
            gradient = 2.0 * torch.addcmul(gram @ miss, miss, pull / shifted, value=power)
            length = torch.linalg.vector_norm(gradient)
            gradient = gradient * (1.0 / (length + 1e-6)).clamp(max=1.0)
            velocity = torch.add(gradient, velocity, alpha=_MOMENTUM)
            w = torch.add(w, velocity, alpha=-0.1).clamp(min=1e-8)
    return best
