"""Worst cases over random Gramians and constants of the methods: bounds on the distance to the optimum.

Weak duality bounds the optimum: no direction improves the worst task more than any point of the dual allows.
So nothing is compared with itself, and another solver's failure does not look like ours; the tests compare
with a conic solver as well. What is measured are the returned weights, for the Gramian as it was given: that
its entries are rounded in single precision is part of the problem, not of the answer.
"""

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtrl.combiners.solvers.worst_case import best_around
from mtrl_benchmarks._families import EXTREME, FAMILIES, jacobian
from mtrl_benchmarks._implementations import implementation
from mtrl_benchmarks._measures import bargaining_residual, simplex_gap, simplex_part
from mtrl_benchmarks.report import Row, note

_SUSPECT = 1e-6  # gap above which another proof is looked for
DTYPES = {"double": torch.float64, "single": torch.float32}


def worst_cases(
    methods: Sequence[str], names: Sequence[str], all_tasks: Sequence[int], cases: int, seed: int
) -> list[Row]:
    """Return one row per implementation, method, constant, dtype, family and number of tasks."""
    rows: list[Row] = []
    for tasks in all_tasks:
        for family in [*FAMILIES, *EXTREME]:
            note(f"{family}, {tasks} tasks")
            drawn = [jacobian(family, tasks, seed * cases + case) for case in range(cases)]
            for method in methods:
                for name in names:
                    for dtype in DTYPES:
                        rows += _rows(name, method, family, tasks, dtype, drawn)
    return rows


def _rows(name: str, method: str, family: str, tasks: int, dtype: str, drawn: Sequence[Tensor]) -> list[Row]:
    measure, constants, function = _MEASURES[method]
    rows: list[Row] = []
    for constant in constants:
        one = implementation(name, method, tasks, constant)
        if one is None or one.weights is None:
            continue
        values = []
        for jacobian_ in drawn:
            gram = jacobian_.to(DTYPES[dtype]) @ jacobian_.to(DTYPES[dtype]).T
            value = function(gram.double(), one.weights(gram).double(), constant or 0.0)
            if value is not None:
                values.append(value if math.isfinite(value) else math.inf)
        rows.append(
            {
                "implementation": name,
                "method": method,
                "constant": constant,
                "dtype": dtype,
                "family": family,
                "tasks": tasks,
                "cases": len(values),
                "measure": measure,
                "median": statistics.median(values) if values else None,
                "worst": max(values, default=None),
            }
        )
    return rows


def _ball_gap(gram: Tensor, weights: Tensor, c: float) -> float:
    """Bound on what the worst task lacks, over c |g0| and the mean norm under the dual point."""
    products = gram.mean(dim=1)
    radius = c * products.mean().sqrt()
    step = (weights - 1.0 / len(weights)) / radius
    length = float((step @ gram @ step).clamp(min=0.0).sqrt())
    there = gram.diagonal() > 0.0
    worst = torch.where(there, products / radius + gram @ step, torch.inf).min()

    def gap(dual: Tensor) -> float:
        bound = dual @ products / radius + (dual @ gram @ dual).clamp(min=0.0).sqrt()
        return float((bound - worst) / (dual @ gram.diagonal().sqrt()))

    found = gap(step.clamp(min=0.0) / step.clamp(min=0.0).sum())
    if not found <= _SUSPECT:
        # The step's own weights prove nothing where gradients cancel. Any point of the simplex may.
        mean = torch.full_like(gram[0], 1.0 / len(gram))
        precisions = (torch.finfo(dtype).eps for dtype in DTYPES.values())
        found = min(found, *(gap(best_around(gram, mean, c, eps=eps)[1]) for eps in precisions))
    return max(found, length - 1.0)


def _cone_gap(gram: Tensor, weights: Tensor, c: float) -> float | None:
    """As `_ball_gap`, in the cone; None where no direction in it improves all tasks."""
    products = gram.mean(dim=1)
    length = products.mean().sqrt()
    norm = (weights @ gram @ weights).clamp(min=0.0).sqrt()
    gains = torch.where(gram.diagonal() > 0.0, gram @ weights / norm, torch.inf)
    if gains.min() <= 0.0:
        return None
    # The weight that all tasks share is that of the mean gradient: as much of it as leaves none below zero.
    shared = weights.min().clamp(min=0.0)
    cosine = float(weights @ products / (norm * length))
    lifts = (0.0, float(shared)) if cosine < c + 1e-6 else (0.0,)
    bounds = []
    for lift in lifts:
        dual = weights - lift
        total = dual.sum()
        eta = lift * len(weights) * length / total
        mixed = weights / total
        value = (mixed @ gram @ mixed).clamp(min=0.0).sqrt() - c * eta
        bounds.append(float((value - gains.min()) / (dual / total @ gram.diagonal().sqrt())))
    return max(min(bounds), c - cosine)


def _if_solvable(
    residual: Callable[[Tensor, Tensor], float],
) -> Callable[[Tensor, Tensor, float], float | None]:
    def measured(gram: Tensor, weights: Tensor, constant: float) -> float | None:
        # A fixed point exists where some direction improves all tasks: then M has no nonnegative null vector.
        value = residual(gram, weights)
        return value if _all_gain(gram, weights) else None

    return measured


def _fairness(gram: Tensor, weights: Tensor, alpha: float) -> float | None:
    if not _all_gain(gram, weights):
        return None
    misses = weights.clamp(min=0.0) ** (1.0 / alpha) * (gram @ weights) - 1.0
    return float(misses[gram.diagonal() > 0.0].abs().max())


def _all_gain(gram: Tensor, weights: Tensor) -> bool:
    """Whether the direction improves all tasks that have a gradient."""
    return bool(((gram @ weights > 0.0) | (gram.diagonal() == 0.0)).all())


def _capped(gram: Tensor, weights: Tensor, cap: float) -> float:
    """How far the products are from the least that weights within the caps can make of them."""
    products, left = gram @ weights, 1.0
    least = 0.0
    cap = max(cap, 1.0 / len(weights))
    # As in the method, zero gradients come last.
    for index in torch.where(gram.diagonal() > 0.0, products, torch.inf).argsort().tolist():
        least += min(cap, left) * float(products[index])
        left = max(left - cap, 0.0)
    return (float(weights @ products) - least) / float(weights @ gram.diagonal())


def _unconflicted(gram: Tensor, weights: Tensor, constant: float) -> float:
    """How much the worst task loses, over its norm and the mean norm: the projections may not harm it."""
    norms = gram.diagonal().sqrt()
    losses = -(gram @ weights) / torch.where(norms > 0.0, norms, 1.0) / norms.mean()
    return float(losses.max().clamp(min=0.0))


def _simplex(gram: Tensor, weights: Tensor, lam: float) -> float:
    # A zero gradient is left out of MGDA's hull; at lam > 0 it is lam g0 there, as in SDMGrad's paper.
    there = gram.diagonal() > 0.0 if lam == 0.0 else torch.ones_like(weights, dtype=torch.bool)
    w = simplex_part(weights, lam)
    return simplex_gap(gram[there][:, there], w[there], lam)


_Measure = Callable[[Tensor, Tensor, float], float | None]
_MEASURES: dict[str, tuple[str, tuple[float | None, ...], _Measure]] = {
    "cagrad": ("duality gap over the radius", (0.02, 0.1, 0.3, 0.5, 0.9, 1.0), _ball_gap),
    "capped_mgda": ("KKT gap", (0.15, 0.3, 0.6, 1.0), _capped),
    "conicgrad": ("duality gap over the length", (0.1, 0.5, 0.9, 0.99), _cone_gap),
    "fairgrad": ("fixed-point residual", (0.5, 1.0, 2.0, 5.0), _fairness),
    "mgda": ("KKT gap", (None,), _simplex),
    "nash_mtl": ("fixed-point residual", (None,), _if_solvable(bargaining_residual)),
    "sdmgrad": ("KKT gap", (0.1, 0.6, 3.0), _simplex),
    "upgrad": ("harm to a task", (None,), _unconflicted),
}
METHODS = list(_MEASURES)
