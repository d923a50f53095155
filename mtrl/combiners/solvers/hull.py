"""The shortest vector in the convex hull of the task gradients, and Euclidean projection on the simplex."""

from __future__ import annotations

import torch
from torch import Tensor

from mtrl.combiners.solvers.path import follow
from mtrl.combiners.solvers.roads import road_of
from mtrl.combiners.solvers.units import tolerance_of, units_of


def shortest_in_hull(gram: Tensor, *, eps: float) -> Tensor:
    """Return the minimiser w [T] in float64 of |g_w| over the simplex, for the Gramian [T, T].

    With x the shortest vector that improves every task by 1, g_w = x / |x|^2. The path to it asks task i for
    an improvement of 1 - tau |g_i| at first and lets tau fall to 0: tasks with short gradients, which weigh
    most, enter first. Where gradients cancel it ends early, with the w for which g_w = 0. Zero gradients
    weigh nothing (see `units_of`). `eps` is the rounding error of the Gramian's entries.
    """
    road = road_of(gram)
    with road.quiet():
        units = units_of(road, road.gramian(gram))
        there = road.xp.where(units.inverse > 0.0, 1.0, units.inverse * 0.0)
        end = follow(road, units.cosines, there, -units.amounts, to_length=False, tolerance=tolerance_of(eps))
        chosen = road.select(end.stuck, end.ray, end.weights)
        total = (chosen * units.amounts).sum()
        some = total > 0.0
        weights = chosen * units.inverse / road.select(some, total, total + 1.0)
        weights = weights / road.select(some, weights.sum(), total + 1.0)
        return road.tensor(road.select(some, weights, weights * 0.0 + 1.0 / len(weights)))


def project(point: Tensor) -> Tensor:
    """Return the point of the simplex nearest to `point` [T] (Euclidean)."""
    descending = point.sort(descending=True).values
    excess = descending.cumsum(0) - 1.0
    rank = torch.arange(1, len(point) + 1, dtype=point.dtype, device=point.device)
    kept = (descending * rank > excess).sum().clamp(min=1)
    return (point - excess.gather(0, kept.view(1) - 1) / kept).clamp(min=0.0)
