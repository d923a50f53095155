"""CAGrad's problem: the best worst-case improvement within a ball around a reference gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mtrl.combiners.solvers.simplex import minimise_root, relative_gap, rounded_norm


class BallSolution(NamedTuple):
    """Weights of the gradients in the direction, and the dual solution that they come from."""

    weights: Tensor  # [T], float64
    dual: Tensor  # [T], float64, on the simplex


def best_in_ball(gram: Tensor, reference: Tensor, c: float) -> BallSolution:
    """Solve max_d min_i <g_i, d> subject to |d - g0| <= c |g0| for the Gramian [T, T], g0 = reference @ G.

    CAGrad, equation 3 and algorithm 1: with w the minimiser of <g_w, g0> + c |g0| |g_w| over the simplex, d =
    g0 + c |g0| g_w / |g_w|.
    """
    exact = gram.to(torch.float64)
    linear, radius = _linear(exact, reference, c)
    eps = torch.finfo(gram.dtype).eps
    dual = minimise_root(exact, linear, eps=eps)
    norm, _ = rounded_norm(exact, dual, eps)
    return BallSolution(torch.addcmul(reference, dual, radius / norm), dual)


def ball_gap(gram: Tensor, reference: Tensor, c: float, dual: Tensor) -> Tensor:
    """Duality gap of `dual` [T] over c |g0| and the mean norm under it, a 0-dim tensor."""
    return relative_gap(gram, _linear(gram, reference, c)[0], dual)


def _linear(gram: Tensor, reference: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """The objective's linear term once divided by the radius c |g0|, and this radius."""
    products = gram @ reference
    radius = c * torch.dot(products, reference).clamp(min=0.0).sqrt()
    return products / torch.where(radius > 0.0, radius, 1.0), radius
