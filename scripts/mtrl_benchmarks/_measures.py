"""How good weights are, from the Gramian alone: objectives and residuals of the methods' own problems."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mtrl_benchmarks._implementations import ALPHA, LAM, C


def objective(method: str, gram: Tensor, weights: Tensor) -> float | None:
    """Return what `OBJECTIVES[method]` describes for weights [T]; None for a method without one."""
    if method not in OBJECTIVES:
        return None
    value = OBJECTIVES[method][1](gram.double(), weights.double().cpu())
    return value if math.isfinite(value) else None


def ball_part(gram: Tensor, weights: Tensor) -> Tensor:
    """The dual solution w [T] of CAGrad in weights u + pull w that are not rescaled."""
    w = weights - 1.0 / len(weights)
    return w / w.sum()


def simplex_part(weights: Tensor, lam: float = 0.0) -> Tensor:
    """The dual solution w [T] in weights proportional to w + lam u."""
    return weights / weights.sum() * (1.0 + lam) - lam / len(weights)


def simplex_gap(gram: Tensor, w: Tensor, lam: float = 0.0) -> float:
    """KKT gap of |g_w + lam g0|^2 / 2 on the simplex, over the mean of |g_i + lam g0|^2 + |g_i|^2 under w.

    The second part is what rounding of the Gramian is relative to where g_i + lam g0 nearly vanishes.
    """
    shifted = gram + lam * (gram.mean(0).unsqueeze(0) + gram.mean(0).unsqueeze(1)) + lam**2 * gram.mean()
    slope = shifted @ w
    scale = w @ (shifted.diagonal() + gram.diagonal())
    return float((w @ slope - slope.min()) / scale)


def bargaining_residual(gram: Tensor, weights: Tensor) -> float:
    """max_i |a_i (Ma)_i - 1| after undoing a clip of the direction's length."""
    products = weights * (gram @ weights)
    there = gram.diagonal() > 0.0
    return float((products[there] * there.sum() / products.sum() - 1.0).abs().max())


def fairness_residual(gram: Tensor, weights: Tensor) -> float:
    """max_i |w_i^(1/alpha) (Mw)_i - 1|."""
    return float((weights.clamp(min=0.0) ** (1.0 / ALPHA) * (gram @ weights) - 1.0).abs().max())


def _ball_dual(gram: Tensor, weights: Tensor) -> float:
    w = ball_part(gram, weights)
    linear = gram.mean(0)
    return float(w @ linear + C * (linear.mean() * (w @ gram @ w)).clamp(min=0.0).sqrt())


def _worst_improvement(gram: Tensor, weights: Tensor) -> float:
    products = gram @ weights
    return float(products.min() / (weights @ products).clamp(min=0.0).sqrt())


def _smallest_cosine(gram: Tensor, weights: Tensor) -> float:
    products = gram @ weights
    lengths = gram.diagonal().sqrt() * (weights @ products).clamp(min=0.0).sqrt()
    return float((products / lengths).min())


def _norm(lam: float) -> Callable[[Tensor, Tensor], float]:
    def value(gram: Tensor, weights: Tensor) -> float:
        mixed = weights / weights.sum() * (1.0 + lam)
        return float(torch.sqrt((mixed @ gram @ mixed).clamp(min=0.0)))

    return value


OBJECTIVES: dict[str, tuple[str, Callable[[Tensor, Tensor], float]]] = {
    "cagrad": ("dual objective, lower is better", _ball_dual),
    "conicgrad": ("worst improvement per unit of length, higher is better", _worst_improvement),
    "fairgrad": ("residual of its fixed point, lower is better", fairness_residual),
    "mgda": ("norm of the direction, lower is better", _norm(0.0)),
    "nash_mtl": ("residual of its fixed point, lower is better", bargaining_residual),
    "sdmgrad": ("|g_w + lam g0|, lower is better", _norm(LAM)),
    "upgrad": ("smallest cosine with a task's gradient, not below zero", _smallest_cosine),
}
