"""SDMGrad: a direction that raises the worst improvement while staying oriented towards the mean gradient."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners._simplex import minimise_quadratic
from mtrl.combiners.base import GramCombiner


class SDMGrad(GramCombiner):
    """SDMGrad (direction-oriented): d = (g_w + lam g0) / (1 + lam), w minimises |g_w + lam g0|.

    Xiao, Ban and Ji, NeurIPS 2023 (arXiv:2305.18409); w ranges over the simplex, g0 is the mean gradient. lam
    = 0 is MGDA (the min-norm point), lam -> infinity the mean.

    Args:
        lam: Weight of the mean gradient in the objective (0.6 in the authors' RL runs).

    Deviations from the authors' code: w is solved to convergence instead of by 20 projected SGD steps whose
    step size exceeds the stability limit; one batch serves for w and d (their three gradient buffers alias,
    so their double sampling does not take place either); no state is carried between updates, so critic and
    actor cannot share it. Tasks whose gradient is zero do not enter the minimisation; they do count in the
    mean.
    """

    name: ClassVar[str] = "sdmgrad"

    def __init__(self, *, num_tasks: int, lam: float = 0.6) -> None:
        super().__init__(num_tasks=num_tasks)
        self.lam = check_number("lam", lam, low=0.0)

    def weights(self, gram: Tensor) -> Tensor:
        """Return (w + lam u) / (1 + lam), shape [T], for the Gramian [T, T]."""
        exact = gram.to(torch.float64)
        w = minimise_quadratic(self._shifted(exact))
        return torch.add(w, self.lam / self.num_tasks).div(1.0 + self.lam).to(gram.dtype)

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the KKT gap of the last solve relative to the objective's scale."""
        w = (self.last_weights * (1.0 + self.lam) - self.lam / self.num_tasks).to(self._last_gram.dtype)
        shifted = self._shifted(self._last_gram)
        gradient = shifted @ w
        scale = shifted.diagonal().mean()
        gap = w @ gradient - gradient.amin()
        return {**super().metrics(), "residual": gap / torch.where(scale > 0.0, scale, 1.0)}

    def _shifted(self, gram: Tensor) -> Tensor:
        """Gramian of the gradients g_i + lam g0: on the simplex the objective is the norm of their mix."""
        linear = self.lam * gram.mean(dim=-1)
        return gram + linear.unsqueeze(-1) + (linear + self.lam * linear.mean())
