"""The inner loops of published RL code, for comparisons with it: fixed sequences that do not converge."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS, _MOMENTUM = 20, 0.5  # of every loop here


def ball_weights(gram: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Return w [T] on the simplex and its factor in CAGrad's direction, g0 + factor g_w, both in float64.

    As in its authors' RL code: 20 steps of momentum SGD on softmax logits from equal weights, on the Gramian
    [T, T] over its squared mean norm, of size 50 for 50 tasks and 25 otherwise; the best of the 21 points.
    1e-4 is under every square root.
    """
    with torch.no_grad():
        exact = gram.to(torch.float64)
        matrix = exact / exact.diagonal().add(1e-4).sqrt().mean().square()
        w = _ball(matrix, c=c, rate=50.0 if len(gram) == 50 else 25.0)
        radius = c * matrix.mean().add(1e-4).sqrt()
        return w, radius / (torch.dot(w, matrix @ w).add(1e-4).sqrt() + 1e-4)


def fair_weights(gram: Tensor, alpha: float) -> Tensor:
    """Return the weights w [T] in float64 for FairGrad's fixed point, as its authors' RL code gets them.

    Momentum SGD of step size 0.1 on |Mw - w^(-1/alpha)|^2 from equal weights, the gradient's norm clipped to
    1, w kept above 1e-8; the best of the first 20 points. M is not scaled.
    """
    with torch.no_grad():
        return _fair(gram.to(torch.float64), power=1.0 / alpha)


def _ball(matrix: Tensor, *, c: float, rate: float) -> Tensor:
    linear = matrix.mean(dim=-1)
    radius = c * linear.mean().add(1e-4).sqrt()
    logits = torch.zeros_like(linear)
    velocity = torch.zeros_like(linear)
    best = torch.full_like(linear, 1.0 / len(linear))
    lowest = torch.full_like(radius, torch.inf)
    for step in range(_STEPS + 1):
        w = logits.softmax(dim=0)
        product = matrix @ w
        norm = torch.dot(w, product).add(1e-4).sqrt()
        value = torch.dot(w, linear) + radius * norm
        best = torch.where(value < lowest, w, best)
        lowest = torch.fmin(value, lowest)
        if step < _STEPS:
            slope = torch.addcmul(linear, product, radius / norm)
            velocity = torch.add(w * (slope - torch.dot(w, slope)), velocity, alpha=_MOMENTUM)
            logits = torch.add(logits, velocity, alpha=-rate)
    return best


def _fair(gram: Tensor, *, power: float) -> Tensor:
    w = torch.full_like(gram[0], 1.0 / len(gram))
    velocity = torch.zeros_like(w)
    best, lowest = w, torch.full_like(w[0], torch.inf)
    for step in range(_STEPS):
        shifted = w + 1e-8
        pull = shifted.pow(-power)
        miss = gram @ w - pull
        value = torch.dot(miss, miss)
        best = torch.where(value < lowest, w, best)
        lowest = torch.fmin(value, lowest)
        if step < _STEPS - 1:
            gradient = 2.0 * torch.addcmul(gram @ miss, miss, pull / shifted, value=power)
            length = torch.linalg.vector_norm(gradient)
            gradient = gradient * (1.0 / (length + 1e-6)).clamp(max=1.0)
            velocity = torch.add(gradient, velocity, alpha=_MOMENTUM)
            w = torch.add(w, velocity, alpha=-0.1).clamp(min=1e-8)
    return best
