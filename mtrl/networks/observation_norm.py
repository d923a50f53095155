"""Standardisation of observations by statistics of a run's first ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST_DEVIATION = 1e-2  # 1 cm in Meta-World, so that a coordinate at rest at first is not blown up
_CLIP = 10.0  # deviations


class ObservationNorm(nn.Module):
    """Standardises each coordinate by its mean and deviation in a run's first ones; identity before `fit`.

    All tasks share the statistics, since a coordinate that rests at first in one task moves in another.
    They never change after `fit`, so that the policy stays a fixed function of the observation.

    Args:
        obs_dim: O.
    """

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(obs_dim))
        self.deviation = nn.Buffer(torch.ones(obs_dim))

    def fit(self, obs: Tensor) -> None:
        """Set mean and deviation [O] from observations [..., O]."""
        rows = obs.flatten(0, -2).double()
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(rows.std(0, correction=0).clamp(min=_SMALLEST_DEVIATION))

    def forward(self, obs: Tensor) -> Tensor:
        """Standardise observations [..., O]."""
        return ((obs - self.mean) / self.deviation).clamp_(-_CLIP, _CLIP)
