from __future__ import annotations

import numpy as np
import pytest
import torch

from mtrl.gradients import block_diagonal_penalty


def test_blocks_are_free_and_everything_between_them_costs() -> None:
    weights = torch.block_diag(torch.full((3, 2), -1.5), torch.full((2, 2), 0.5), torch.ones(2, 1)).double()
    for groups in (1, 2, 3):
        assert block_diagonal_penalty(weights, groups).abs() < 1e-12
    assert block_diagonal_penalty(weights, 4) > 0.1
    weights[0, 4] = 0.2
    assert block_diagonal_penalty(weights, 3) > 0.01


def test_it_is_the_least_cut_of_relaxed_indicators() -> None:
    """min <L, U> over 0 <= U <= 1 with trace `groups`, at its minimiser, a projection on eigenvectors."""
    weights = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edges = np.abs(weights.numpy())
    laplacian = np.zeros((9, 9))
    for feature in range(5):
        for task in range(4):
            step = np.zeros(9)
            step[feature], step[5 + task] = 1.0, -1.0
            laplacian += edges[feature, task] * np.outer(step, step)
    vectors = np.linalg.eigh(laplacian)[1][:, :3]
    expected = np.trace(laplacian @ vectors @ vectors.T)
    assert float(block_diagonal_penalty(weights, 3)) == pytest.approx(expected)


def test_slopes_are_those_of_differences() -> None:
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.autograd.gradcheck(lambda w: block_diagonal_penalty(w, 2), weights.requires_grad_())


def test_planted_blocks_are_found_by_descent() -> None:
    torch.manual_seed(0)
    planted = torch.block_diag(torch.randn(3, 2), torch.randn(3, 2))
    inputs = torch.randn(60, 6)
    outputs = inputs @ planted + 0.3 * torch.randn(60, 4)
    weights = torch.zeros(6, 4).add_(0.1).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss = (inputs @ weights - outputs).square().mean() + 0.3 * block_diagonal_penalty(weights, 2)
        loss.backward()
        optimizer.step()
    across = planted == 0.0
    assert weights.detach().abs()[across].max() < 0.05
    assert weights.detach().abs()[~across].mean() > 0.3


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"groups must be an integer in \[1, 5\]; found 6"):
        block_diagonal_penalty(torch.ones(3, 2), 6)
    with pytest.raises(ValueError, match="weights must have shape"):
        block_diagonal_penalty(torch.ones(3), 1)
