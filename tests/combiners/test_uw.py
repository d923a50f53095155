from __future__ import annotations

import pytest
import torch

from mtrl.combiners.uw import UW

TASKS = 3
TRUE = torch.tensor([0.1, 1.0, 50.0], dtype=torch.float64)


def test_parameters_and_noise_levels_move_as_in_one_joint_optimisation() -> None:
    """The whole objective, built from its formula, descended by autograd and two of torch's optimisers."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(TASKS, 20, 6, generator=generator, dtype=torch.float64)
    labels = torch.randn(TASKS, 20, generator=generator, dtype=torch.float64) * TRUE.sqrt().unsqueeze(-1)

    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    s = torch.zeros(TASKS, dtype=torch.float64, requires_grad=True)
    descent, adam = torch.optim.SGD([theta], lr=0.1), torch.optim.Adam([s], lr=0.01)
    ours, combiner = torch.zeros_like(theta), UW(num_tasks=TASKS)
    for _ in range(40):
        losses = (features @ theta - labels).square().mean(1)
        objective = ((-s).exp() * losses + s).sum() / 2.0
        # Adam does not see the factor 1/T of the mean over tasks, plain descent does.
        theta.grad, s.grad = torch.autograd.grad(objective, (theta, s))
        theta.grad /= TASKS
        residual = features @ ours - labels
        rows = 2.0 * torch.einsum("tb,tbp->tp", residual, features) / 20
        ours = ours - 0.1 * combiner.combine(rows, residual.square().mean(1))
        descent.step()
        adam.step()
        torch.testing.assert_close(ours, theta.detach())
        torch.testing.assert_close(combiner.s.value, s.detach())


def test_weights_settle_at_half_the_inverse_loss() -> None:
    combiner = UW(num_tasks=TASKS, lr=0.05)
    for _ in range(2000):
        weights = combiner.weights(TRUE)
    torch.testing.assert_close(weights, 1.0 / (2.0 * TRUE * TASKS), rtol=1e-3, atol=0.0)


def test_torchjd_agrees() -> None:
    library = pytest.importorskip("torchjd.scalarization")
    theirs, ours = library.UW(TASKS).double(), UW(num_tasks=TASKS)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for step in range(10):
        losses = (TRUE * (1.0 + 0.1 * step)).requires_grad_()
        adam.zero_grad()
        theirs(losses).backward()
        assert losses.grad is not None
        torch.testing.assert_close(ours.weights(losses.detach()) * TASKS, losses.grad)
        adam.step()
