"""Independent forms of methods that look at losses or at single coordinates: loops, optimisers of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners import make_combiner


def sac_options(method: str) -> dict[str, Any]:
    """Options without which SAC refuses a method: its actor loss has no certain sign."""
    return {"shift": "minimum"} if make_combiner(method, num_tasks=2).positive_losses else {}


def losses_of(rows: Tensor) -> Tensor:
    """Losses [T] to go with a Jacobian: positive, larger for longer rows, unmoved by its overall scale."""
    norms = rows.double().norm(dim=1)
    mean = norms.mean()
    relative: Tensor = norms / torch.where(mean > 0.0, mean, 1.0)
    return (1.0 + relative).to(rows.dtype)


def lengths_of(jacobian: Tensor) -> list[float]:
    return [math.sqrt(math.fsum(x * x for x in row)) for row in jacobian.tolist()]


def mixed(rows: Sequence[Tensor] | Tensor, shares: Sequence[float]) -> Tensor:
    """Sum of rows with weights of sum 1, in proportion to the shares."""
    total, found = math.fsum(shares), torch.zeros_like(rows[0])
    for row, share in zip(rows, shares, strict=True):
        found += row * (share / total)
    return found


def assert_adam_per_task(jacobian: Tensor, direction: Tensor) -> None:
    """The direction is minus the sum of what torch's Adam, one per task, moves zero parameters by."""
    moved = torch.zeros_like(direction)
    for row in jacobian:
        parameter = torch.zeros_like(row, requires_grad=True)
        parameter.grad = row.clone()
        torch.optim.Adam([parameter], lr=1.0, eps=1e-30).step()
        moved += parameter.detach()
    torch.testing.assert_close(direction, -moved)


def assert_inverse_losses(jacobian: Tensor, direction: Tensor) -> None:
    """FAMO's first direction: along the gradient of the mean log-loss, with weights that sum to 1."""
    shares = [1.0 / loss for loss in losses_of(jacobian).tolist()]
    torch.testing.assert_close(direction, mixed(jacobian, shares))


def assert_geometric_mean(jacobian: Tensor, direction: Tensor) -> None:
    """GLS: the gradient of the geometric mean of losses that have these rows as gradients."""
    theta = torch.zeros(jacobian.shape[1], dtype=torch.float64, requires_grad=True)
    losses = losses_of(jacobian) + jacobian @ theta
    (expected,) = torch.autograd.grad(losses.prod() ** (1.0 / len(jacobian)), theta)
    torch.testing.assert_close(direction, expected)


def assert_soft_inverse_losses(jacobian: Tensor, direction: Tensor, *, temperature: float) -> None:
    """UW-SO: weights in proportion to exp(1 / (loss temperature)), of sum 1."""
    powers = [math.exp(1.0 / (loss * temperature)) for loss in losses_of(jacobian).tolist()]
    torch.testing.assert_close(direction, mixed(jacobian, powers))


def assert_discrepancies(jacobian: Tensor, direction: Tensor, *, lam: float) -> None:
    """LDC-MTL's first direction: the gradient of mean losses and of what lies between neighbours."""
    theta = torch.zeros(jacobian.shape[1], dtype=torch.float64, requires_grad=True)
    losses = (losses_of(jacobian) + jacobian @ theta) / len(jacobian)
    between = sum((abs(one - other) for one, other in pairwise(losses)), torch.zeros(()))
    (expected,) = torch.autograd.grad(losses.sum() + lam * between, theta)
    torch.testing.assert_close(direction, expected)


def assert_half_mean(jacobian: Tensor, direction: Tensor) -> None:
    """UW's first direction: half the mean."""
    torch.testing.assert_close(direction, jacobian.sum(dim=0) / (2 * len(jacobian)))


def assert_exponential(jacobian: Tensor, direction: Tensor, *, temperature: float) -> None:
    """BMTL: along the gradient of the sum of exp(loss / temperature), scaled to weights that sum to 1."""
    powers = [math.exp(loss / temperature) for loss in losses_of(jacobian).tolist()]
    torch.testing.assert_close(direction, mixed(jacobian, powers))


def assert_equal_contributions(jacobian: Tensor, direction: Tensor) -> None:
    """Loss-proportional steps: relative contributions without variance, lengths that sum to the mean length.

    The weighted gradients are recovered from the direction, so the rows must be independent.
    """
    norms = torch.tensor(lengths_of(jacobian), dtype=torch.float64)
    units = jacobian / norms.unsqueeze(-1)
    lengths = torch.linalg.lstsq(units.T, direction.unsqueeze(-1)).solution.squeeze(-1)
    contributions = losses_of(jacobian) / lengths
    torch.testing.assert_close(contributions, contributions[:1].expand_as(contributions), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(lengths.sum(), norms.mean(), rtol=1e-6, atol=0.0)


def assert_unit_pull(jacobian: Tensor, direction: Tensor) -> None:
    """Normalised gradients: the direction over the mean length is the mean of unit vectors."""
    lengths = lengths_of(jacobian)
    units = mixed([row / length for row, length in zip(jacobian, lengths, strict=True)], [1.0] * len(lengths))
    torch.testing.assert_close(direction, units * math.fsum(lengths) / len(lengths))


def assert_dual_balance(jacobian: Tensor, direction: Tensor) -> None:
    """DB-MTL's first direction, from the algorithm's lines: log-losses, averages from zero, longest norm."""
    theta = torch.zeros(jacobian.shape[1], dtype=torch.float64, requires_grad=True)
    averages = []
    for row, loss in zip(jacobian, losses_of(jacobian), strict=True):
        (gradient,) = torch.autograd.grad((loss + row @ theta).log(), theta)
        averages.append(gradient + 0.9 * (0.0 - gradient))
    longest = max(float(average.norm()) for average in averages)
    expected = sum((longest / average.norm() * average for average in averages), torch.zeros_like(direction))
    torch.testing.assert_close(direction, expected)


def assert_one_sign_per_parameter(jacobian: Tensor, direction: Tensor) -> None:
    """GradDrop: each entry is T-th of the sum of its positive gradients or of its negative ones."""
    for column, entry in zip(jacobian.T.tolist(), direction.tolist(), strict=True):
        sums = [math.fsum(x for x in column if sign * x > 0.0) for sign in (1, -1)]
        distance = min(abs(entry * len(column) - one_sign) for one_sign in sums)
        assert distance <= 1e-12 * max(map(abs, column)), (entry, sums)
