"""The CAGrad paper's two-task landscape: plain descent works from these starts, so must the methods."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner

STARTS = {"C": (-8.5, -5.0), "D": (0.0, 0.0), "F": (10.0, -8.0)}


def losses(theta: Tensor) -> Tensor:
    x, y = theta
    first = ((-x - 7.0) / 2.0 - torch.tanh(-y)).abs().clamp(min=5e-6).log() + 6.0
    second = ((-x + 3.0) / 2.0 + torch.tanh(-y) + 2.0).abs().clamp(min=5e-6).log() + 6.0
    above, below = torch.tanh(y / 2.0).clamp(min=0.0), torch.tanh(-y / 2.0).clamp(min=0.0)
    bowls = [((side - x) ** 2 + 0.1 * (y + 8.0) ** 2) / 10.0 - 20.0 for side in (7.0, -7.0)]
    return torch.stack((above * first + below * bowls[0], above * second + below * bowls[1]))


def descend(name: str, start: str, steps: int) -> Tensor:
    theta = torch.tensor(STARTS[start], dtype=torch.float64, requires_grad=True)
    combiner = make_combiner(name, num_tasks=2)
    optimizer = torch.optim.Adam([theta], lr=1e-3)
    unit = torch.eye(2, dtype=torch.float64)
    for _ in range(steps):
        values = losses(theta)
        rows = torch.autograd.grad(values, theta, unit, is_grads_batched=True)[0]
        theta.grad = combiner.combine(rows)
        optimizer.step()
    return theta.detach()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", sorted(STARTS))
@pytest.mark.parametrize("name", ["mean", "cagrad", "conicgrad"])
def test_the_optimum_of_the_mean_loss_is_reached(name: str, start: str) -> None:
    assert losses(descend(name, start, steps=16_000)).mean() < -14.8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bargain_ends_on_the_pareto_set() -> None:
    x, y = descend("nash_mtl", "D", steps=9_000)
    assert abs(y + 8.36) < 0.05
    assert abs(x) < 0.05
