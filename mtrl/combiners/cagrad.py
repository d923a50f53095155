"""CAGrad: the best worst-case improvement within a ball around the mean gradient."""

from collections.abc import Sized
from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice, check_number, check_weights
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.worst_case import around_gap, best_around

_STEPS, _MOMENTUM = 20, 0.5  # of the published inner loop, which does not converge


class CAGrad(GramCombiner):
    """CAGrad (conflict-averse gradient descent): max_d min_i g_i.d subject to |d - g0| <= c |g0|.

    Liu et al., NeurIPS 2021 (arXiv:2110.14048), equation 3 and algorithm 1. g0 is the mean gradient; w
    minimises g_w.g0 + c |g0| |g_w| over the simplex; d = g0 + c |g0| g_w / |g_w|, divided as `rescale` says.

    Args:
        c: Radius of the ball around the mean gradient relative to its norm (paper: 0.9 MT10, 0.5 MT50).
        rescale: Divides the direction by 1 (0), by 1 + c^2 (1, the authors' RL code) or by 1 + c (2).
        solver: `exact` solves the dual; `paper` takes 20 SGD steps on softmax logits (authors' RL code),
            which leave gaps of 1e-2 in the objective at 50 tasks and fail where norms differ strongly.
        preference: Weight of each task in g0, used as given; empty: 1/T each. With `exact` only.

    Deviation of `exact` from the authors' RL code: nothing is added under square roots; their 1e-4 makes
    gradients below 1e-2 count for nothing. Zero gradients (in a smooth transition near 1e-16 of the longest,
    see solvers/path.py) leave the maximisation, since no direction changes their losses, but count in the
    mean. Where gradients cancel so that no direction improves all tasks, several are optimal; the one nearest
    to g0 is taken. It lies inside the ball, with g_w = 0.
    """

    name = "cagrad"
    papers = ("liu2021cagrad",)

    def __init__(
        self,
        *,
        num_tasks: int,
        c: float = 0.9,
        rescale: Literal[0, 1, 2] = 1,
        solver: Literal["exact", "paper"] = "exact",
        preference: tuple[float, ...] = (),
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.c = check_number("c", c, low=0.0)
        check_choice("solver", solver, ("exact", "paper"))
        self._paper = solver == "paper"
        self._divisor = divisor_of(self.c, rescale)
        preferred = not isinstance(preference, Sized) or len(preference) > 0
        if self._paper and preferred:
            raise ValueError(f"preference must be empty with solver='paper'; found {preference!r}.")
        self._dual = nn.Buffer(self.last_weights.clone(), persistent=False)
        weights = check_weights("preference", preference, num_tasks)
        self._reference = nn.Buffer(weights, persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        """Return u + c |g0| / |g_w| w, rescaled, shape [T], for the Gramian [T, T]."""
        if self._paper:
            dual, pull = _published(gram, self.c)
            weights = torch.add(dual * pull, 1.0 / self.num_tasks)
        else:
            eps = torch.finfo(gram.dtype).eps
            weights, dual = best_around(gram, self._reference, self.c, eps=eps)
        self._dual.copy_(dual)
        return weights / self._divisor

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the duality gap of the last weights over c |g0| and the mean norm under w.

        With `exact` up to 1e-5; in single precision up to 2e-3 for dependent gradients, and without bound if
        their norms also differ by orders of magnitude (docs/methods.md).
        """
        weights = self.last_weights * self._divisor
        gap = around_gap(self._last_gram, self._reference, self.c, weights, self._dual)
        return {**super().metrics(), "residual": gap}


def divisor_of(c: float, rescale: int) -> float:
    """Return what CAGrad's `rescale` divides the direction by: 1 (0), 1 + c^2 (1) or 1 + c (2)."""
    check_choice("rescale", rescale, (0, 1, 2))
    return (1.0, 1.0 + c**2, 1.0 + c)[rescale]


@torch.no_grad()
def _published(gram: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """Return w [T] on the simplex and its factor in CAGrad's direction, g0 + factor g_w, both in float64.

    As in its authors' RL code: 20 steps of momentum SGD on softmax logits from equal weights, on the Gramian
    [T, T] over its squared mean norm, of size 50 for 50 tasks and 25 otherwise; the best of the 21 points.
    1e-4 is under every square root.
    """
    exact = gram.to(torch.float64)
    matrix = exact / exact.diagonal().add(1e-4).sqrt().mean().square()
    rate = 50.0 if len(gram) == 50 else 25.0
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
    radius = c * matrix.mean().add(1e-4).sqrt()  # not the one above: a mean of means rounds otherwise
    return best, radius / (torch.dot(best, matrix @ best).add(1e-4).sqrt() + 1e-4)
