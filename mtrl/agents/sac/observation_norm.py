"""Observations standardised by statistics of the warm-up. Knows no SAC."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST_DEVIATION = 1e-2  # a centimetre in Meta-World: what never moved in warm-up is not blown up later
_CLIP = 10.0  # deviations


class ObservationNorm(nn.Module):
    """Standardises each coordinate with mean and deviation over all tasks' warm-up; identity before `fit`.

    One pair for all tasks: a coordinate that stands still in one task's warm-up moves in another's. Frozen
    from then on, so that the policy is a fixed function of what it sees; part of the module's state.

    Args:
        obs_dim: O.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("deviation", torch.ones(obs_dim))

    def fit(self, obs: Tensor) -> None:
        """Take mean and deviation [O] from observations [..., O]."""
        rows = obs.flatten(0, -2).double()
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(rows.std(0, correction=0).clamp(min=_SMALLEST_DEVIATION))

    def forward(self, obs: Tensor) -> Tensor:
        """Standardise observations [..., O]."""
        return ((obs - self.mean) / self.deviation).clamp_(-_CLIP, _CLIP)
