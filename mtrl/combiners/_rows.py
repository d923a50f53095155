"""Lengths and unit vectors of the rows of a Jacobian, at any scale that its numbers can have."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [T, P] scaled to length 1 and their lengths [T], float64; zero rows stay zero."""
    low, high = torch.aminmax(rows, dim=1)
    peaks = torch.maximum(high, -low)
    # Squares of the numbers themselves leave single precision at 1e19 and at 1e-23.
    scaled = rows / torch.where(peaks > 0.0, peaks, 1.0).unsqueeze(-1)
    inner = torch.linalg.vector_norm(scaled, dim=1)
    units = scaled / torch.where(inner > 0.0, inner, 1.0).unsqueeze(-1)
    return units, peaks.to(torch.float64) * inner.to(torch.float64)
