"""Standardisation of observations against numpy's own statistics."""

from __future__ import annotations

import numpy as np
import torch

from mtrl.networks.layers import ObservationNorm


def test_identity_before_and_standardised_after_fitting() -> None:
    norm = ObservationNorm(3)
    obs = torch.randn(2, 100, 3, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.6
    obs[..., 2] = 0.02  # stands still
    torch.testing.assert_close(norm(obs), obs)
    norm.fit(obs)
    values = obs.numpy().reshape(-1, 3).astype(np.float64)
    deviation = np.maximum(values.std(0), 0.01)
    expected = (values - values.mean(0)) / deviation
    torch.testing.assert_close(
        norm(obs).view(-1, 3).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4
    )


def test_far_values_are_cut_off() -> None:
    norm = ObservationNorm(1)
    norm.fit(torch.zeros(1, 5, 1))
    assert norm(torch.tensor([[1e6]])).item() == 10.0
    assert norm(torch.tensor([[-1e6]])).item() == -10.0
