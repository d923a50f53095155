"""PIVRG: FairGrad in which tasks that succeed less often count more."""

import math

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.bargaining import bargain_residual, bargaining_weights
from mtrl.combiners.solvers.gramian import rounding_ridge


class PIVRG(GramCombiner):
    """PIVRG (performance-informed variance reduction): weights w > 0 with M w = (p / w)^(1/2).

    Qin, Wang and Yan, CVPR 2025; M is the Gramian and p = T softmax((1 - success rate) / tau), where tau is
    the largest difference of success rates over log(bound), at least `temperature`. So no p is more than
    `bound` times another. With p = 1 it is `fairgrad` with alpha = 2.

    Args:
        bound: Largest ratio of two tasks' p, above 1 (authors' code: 2; 1.8 in one of its scripts).
        temperature: Smallest tau, at least 0.05 (authors' code: 10 points of a score in percent).

    Success rates come from `note_success(rates)`. Training calls it after each evaluation; in other code call
    it with any measure of performance in [0, 1]. Until then p = 1, and a task without a rate (NaN) keeps p =
    1. Deviations from the authors' code: its scores are percent lost against single-task training, Newton's
    method solves to rounding error, and the direction is not multiplied by T and clipped to norm 1. Where no
    solution exists, see `fairgrad`. The paper's text could not be read.
    """

    name = "pivrg"
    papers = ("qin2025pivrg",)

    def __init__(self, *, num_tasks: int, bound: float = 2.0, temperature: float = 0.1) -> None:
        super().__init__(num_tasks=num_tasks)
        self.bound = check_number("bound", bound, low=1.001)
        self.temperature = check_number("temperature", temperature, low=0.05)
        self.preference = nn.Buffer(torch.ones(num_tasks, dtype=torch.float64))

    def _note_success(self, rates: Tensor) -> None:
        rates = rates.to(self.preference)
        known = ~rates.isnan()
        spread = torch.where(known, rates, -torch.inf).amax() - torch.where(known, rates, torch.inf).amin()
        tau = (spread / math.log(self.bound)).clamp(min=self.temperature)
        shares = torch.softmax(torch.where(known, (1.0 - rates) / tau, -torch.inf), dim=0)
        self.preference.copy_(torch.where(known, shares * known.sum(), 1.0))

    def _weights(self, gram: Tensor) -> Tensor:
        # With w = b / p it is FairGrad for the gradients g_t / p_t: sum_j M_ij b_j / (p_i p_j) = b_i^(-1/2).
        inverse = self.preference.reciprocal()
        scaled = gram.to(torch.float64) * inverse * inverse.unsqueeze(-1)
        return bargaining_weights(scaled, ridge=rounding_ridge(gram), alpha=2.0) * inverse

    def metrics(self) -> dict[str, Tensor]:
        """Add `preference` [T], p, and `residual`, the largest |(w_t / p_t)^(1/2) (Mw)_t - 1|, at most 1."""
        residual = bargain_residual(self._last_gram, self.last_weights, alpha=2.0, preference=self.preference)
        return {**super().metrics(), "preference": self.preference.clone(), "residual": residual}
