"""Independent forms of further methods: pseudo-inverse, autograd, enumeration, the papers' own lines."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from tests.helpers.loss_methods import lengths_of, losses_of, mixed


def config_direction(jacobian: Tensor) -> Tensor:
    """ConFIG's equation 2 by NumPy's pseudo-inverse of the unit gradients, its length the mean projection."""
    rows = jacobian.double().numpy()
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    along = np.linalg.pinv(units) @ np.ones(len(rows))
    along /= np.linalg.norm(along)
    return torch.from_numpy(along * (rows @ along).mean())


def assert_config(jacobian: Tensor, direction: Tensor) -> None:
    expected = config_direction(jacobian)
    torch.testing.assert_close(direction, expected, rtol=1e-6, atol=1e-7 * float(expected.norm()))


def assert_signs_of_config(jacobian: Tensor, direction: Tensor) -> None:
    torch.testing.assert_close(direction, config_direction(jacobian).sign(), rtol=1e-6, atol=1e-6)


def assert_kernel_norms(jacobian: Tensor, direction: Tensor) -> None:
    """NTKMTL: weights sqrt(sum of the kernels' eigenvalues / own eigenvalue), the mean over tasks."""
    eigenvalues = [length**2 for length in lengths_of(jacobian)]
    weights = [math.sqrt(math.fsum(eigenvalues) / own) / len(jacobian) for own in eigenvalues]
    torch.testing.assert_close(direction, torch.tensor(weights, dtype=torch.float64) @ jacobian)


def assert_harmonic(jacobian: Tensor, direction: Tensor) -> None:
    """The first direction by smoothed norms: the sum of unit gradients times the harmonic mean length / T."""
    shares = [1.0 / length for length in lengths_of(jacobian)]
    torch.testing.assert_close(direction, mixed(jacobian, shares))


def assert_log_losses(jacobian: Tensor, direction: Tensor) -> None:
    """STCH's warm-up: the gradient of the mean log-loss, by autograd."""
    theta = torch.zeros(jacobian.shape[1], dtype=torch.float64, requires_grad=True)
    objective = (losses_of(jacobian) + jacobian @ theta).log().mean()
    torch.testing.assert_close(direction, torch.autograd.grad(objective, theta)[0])


def assert_tracked(jacobian: Tensor, direction: Tensor) -> None:
    """MoCo's first update at its defaults, line by line."""
    tracked = [
        0.5 * loss * row / length
        for row, loss, length in zip(jacobian, losses_of(jacobian), lengths_of(jacobian), strict=True)
    ]
    tasks = len(tracked)
    logits = [
        1.0 / tasks - 0.1 * math.fsum(float(mine @ other) / tasks for other in tracked) for mine in tracked
    ]
    powers = [math.exp(logit) for logit in logits]
    torch.testing.assert_close(direction, mixed(tracked, powers))


def simplex_projection(point: list[float]) -> list[float]:
    """Nearest point of the simplex, by bisection on the threshold."""
    low, high = min(point) - 1.0, max(point)
    for _ in range(200):
        middle = (low + high) / 2.0
        if math.fsum(max(x - middle, 0.0) for x in point) > 1.0:
            low = middle
        else:
            high = middle
    return [max(x - high, 0.0) for x in point]


def assert_double_sampling(jacobian: Tensor, direction: Tensor, *, gamma: float, rho: float) -> None:
    """MoDo's first update where all three batches have the same gradients."""
    tasks = len(jacobian)
    mean = jacobian.sum(dim=0) / tasks
    moved = [1.0 / tasks - gamma * (float(row @ mean) + rho / tasks) for row in jacobian]
    expected = torch.tensor(simplex_projection(moved), dtype=torch.float64) @ jacobian
    scale = float(jacobian.norm(dim=1).max())
    torch.testing.assert_close(direction, expected, rtol=1e-7, atol=1e-9 * scale)


def assert_inverse_temperatures(jacobian: Tensor, direction: Tensor) -> None:
    """Weights in proportion to 1 / temperature, for the temperatures that the evaluator gives."""
    lengths = lengths_of(jacobian)
    mean = math.fsum(lengths) / len(lengths)
    shares = [1.0 / (1.0 + length / mean) for length in lengths]
    torch.testing.assert_close(direction, mixed(jacobian, shares))


def assert_variance_regularised(jacobian: Tensor, direction: Tensor, *, lam: float) -> None:
    """EMTL: weights of the regularised loss by autograd, norms held fixed, as far as its two bounds allow."""
    norms = torch.tensor(lengths_of(jacobian), dtype=torch.float64)
    losses = losses_of(jacobian).clone().requires_grad_()
    unit = norms.mean() ** 2 / losses.detach().abs().mean()
    objective = losses.sum() + lam * unit * (losses / norms).var(correction=0)
    extra = torch.autograd.grad(objective, losses)[0] - 1.0
    mean, further = jacobian.mean(dim=0), extra @ jacobian / len(jacobian)
    share = min(1.0, 1.0 / float(extra.abs().max()))
    for row in jacobian:
        improvement, change = float(row @ mean), float(row @ further)
        if improvement > 0.0 > improvement + share * change:
            share = -improvement / change
    expected = mean + share * further
    scale = float(expected.abs().max())
    torch.testing.assert_close(direction, expected, rtol=1e-8, atol=1e-10 * scale)


def assert_masked_mean(jacobian: Tensor, direction: Tensor, *, rate: float) -> None:
    """Binary DropGrad: each entry is the mean over tasks of some of the column, over 1 - rate."""
    tasks = len(jacobian)
    for column, entry in zip(jacobian.T.tolist(), direction.tolist(), strict=True):
        possible = [
            math.fsum(chosen) / (tasks * (1.0 - rate))
            for count in range(tasks + 1)
            for chosen in itertools.combinations(column, count)
        ]
        nearest = min(abs(entry - value) for value in possible)
        assert nearest <= 1e-12 * max(map(abs, column)), (entry, possible)
