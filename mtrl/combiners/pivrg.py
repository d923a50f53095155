"""PIVRG: FairGrad in which tasks that succeed less often count more."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.bargaining import bargain_residual, bargaining_weights
from mtrl.combiners.solvers.gramian import rounding_ridge


class PIVRG(GramCombiner):
    """PIVRG (performance-informed variance reduction): weights w > 0 with M w = (p / w)^(1/2).

    Qin, Wang and Yan, CVPR 2025; M is the Gramian and p = T softmax((1 - success rate) / temperature). With p
    = 1 it is `fairgrad` with alpha = 2.

    Args:
        temperature: Difference of success rates that makes one task's p e times another's, at least 0.05
            (ours).

    Success rates come from `note_success(rates)`. Training calls it after each evaluation; in other code call
    it with any measure of performance in [0, 1]. Until then p = 1, and a task without a rate (NaN) keeps p =
    1. Deviation from the authors' code: Newton's method solves to rounding error. Where no solution exists,
    see `fairgrad`. The paper's text could not be read.
    """

    name = "pivrg"
    papers = ("qin2025pivrg",)

    def __init__(self, *, num_tasks: int, temperature: float = 1.0) -> None:
        super().__init__(num_tasks=num_tasks)
        self.temperature = check_number("temperature", temperature, low=0.05)
        self.preference = nn.Buffer(torch.ones(num_tasks, dtype=torch.float64))

    def _note_success(self, rates: Tensor) -> None:
        rates = rates.to(self.preference)
        known = ~rates.isnan()
        shares = torch.softmax(torch.where(known, (1.0 - rates) / self.temperature, -torch.inf), dim=0)
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
