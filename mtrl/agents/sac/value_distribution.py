"""Values as probabilities over equally spaced atoms: projection, expectation, loss. Pure functions.

N atoms on [low, high], D apart. Knows no SAC.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Atoms(NamedTuple):
    """N values, equally spaced on [low, high], ends included."""

    low: float
    high: float
    number: int

    @property
    def spacing(self) -> float:
        """D, between neighbours."""
        return (self.high - self.low) / (self.number - 1)

    def values(self, like: Tensor) -> Tensor:
        """The atoms [N], with dtype and device of `like`; not to be written to."""
        return _values(self, like.dtype, like.device)


@lru_cache
def _values(atoms: Atoms, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.linspace(atoms.low, atoms.high, atoms.number, dtype=dtype, device=device)


def expectation(atoms: Atoms, logits: Tensor) -> Tensor:
    """Mean value [...] of the distributions with logits [..., N]."""
    return torch.softmax(logits, dim=-1) @ atoms.values(logits)


def project(atoms: Atoms, probabilities: Tensor, values: Tensor) -> Tensor:
    """Move mass onto the atoms: each value's is split between its two neighbours, their mean kept.

    The categorical projection (C51, arXiv 1707.06887, equation 7); values beyond the ends count as the ends.

    Args:
        atoms: N of them.
        probabilities: [..., M].
        values: [..., M], where that mass lies.

    Returns:
        Probabilities [..., N].
    """
    position = ((values - atoms.low) / atoms.spacing).clamp(0.0, atoms.number - 1.0)
    below = position.floor()
    above_share = position - below
    left = below.long()
    result = probabilities.new_zeros(*probabilities.shape[:-1], atoms.number)
    result.scatter_add_(-1, left, probabilities * (1.0 - above_share))
    # On the last atom nothing is left for the one above it.
    right = (left + 1).clamp(max=atoms.number - 1)
    return result.scatter_add_(-1, right, probabilities * above_share)


def two_hot(atoms: Atoms, values: Tensor) -> Tensor:
    """Probabilities [..., N] of single values [...]: the two neighbouring atoms, whose mean is the value."""
    values = values.unsqueeze(-1)
    return project(atoms, torch.ones_like(values), values)


def gaussian(atoms: Atoms, values: Tensor, deviation: float) -> Tensor:
    """Probabilities [..., N] of normal distributions around values [...], cut off at the ends.

    The mass of each atom is that of the interval of width D around it (HL-Gauss, arXiv 2403.03950, eq. 6).

    Args:
        atoms: N of them.
        values: means; those beyond the ends count as the ends.
        deviation: of the normal distributions, in units of D.
    """
    position = ((values - atoms.low) / atoms.spacing).clamp(0.0, atoms.number - 1.0)
    edges = torch.arange(atoms.number + 1, dtype=values.dtype, device=values.device) - 0.5
    cumulative = torch.erf((edges - position.unsqueeze(-1)) / (math.sqrt(2.0) * deviation))
    mass = cumulative.diff(dim=-1)
    return mass / mass.sum(-1, keepdim=True)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy [...] of predictions with logits [..., N] relative to target probabilities [..., N]."""
    return -(target * F.log_softmax(logits, dim=-1)).sum(-1)
