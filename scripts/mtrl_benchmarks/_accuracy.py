"""Worst cases over random Gramians: distance to a conic solver's optimum, residuals, KKT gaps."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import statistics
from collections.abc import Callable, Sequence
from types import ModuleType

from torch import Tensor

from mtrl.combiners import COMBINERS
from mtrl.errors import UserError
from mtrl_benchmarks._families import FAMILIES, jacobian
from mtrl_benchmarks._implementations import LAM, C, Weights, implementation
from mtrl_benchmarks._measures import bargaining_residual, fairness_residual, simplex_gap, simplex_part
from mtrl_benchmarks.report import Row, note

_CONE = 0.5  # ConicGrad's default cosine
_SOLVABLE = 1e-6  # common improvement per unit of length from which on a fixed point counts as existing


class _Case:
    """One Jacobian [T, P] with what the conic solver says about it, solved once for all implementations."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.gram = rows @ rows.T

    @functools.cached_property
    def best_in_ball(self) -> float:
        return float(_conic().best_worst_improvement_in_ball(self.rows, C))

    @functools.cached_property
    def best_in_cap(self) -> float:
        return float(_conic().best_worst_improvement_in_cap(self.rows, _CONE))

    @functools.cached_property
    def solvable(self) -> bool:
        return bool(_conic().best_common_improvement(self.rows) > _SOLVABLE)


def _conic() -> ModuleType:
    return importlib.import_module("mtrl_benchmarks._conic")


# A measure of weights [T] for a case; None: the case does not count.
Measure = Callable[[_Case, Tensor], float | None]


def worst_cases(
    methods: Sequence[str], names: Sequence[str], all_tasks: Sequence[int], cases: int, seed: int
) -> list[Row]:
    """Return one row per implementation, method, family and number of tasks.

    Raises:
        UserError: the conic solver is not installed.
    """
    if any(importlib.util.find_spec(package) is None for package in ("cvxpy", "clarabel")):
        raise UserError("--accuracy compares with a conic solver: pip install cvxpy clarabel.")
    rows: list[Row] = []
    for tasks in all_tasks:
        for family in FAMILIES:
            note(f"{family}, {tasks} tasks")
            drawn = [_Case(jacobian(family, tasks, seed * cases + case)) for case in range(cases)]
            for method in methods:
                measure, function = _MEASURES[method]
                for peer in names:
                    one = implementation(peer, method, tasks)
                    if one is not None and one.weights is not None:
                        values = _values(drawn, function, one.weights)
                        rows.append(_row(peer, method, family, tasks, measure, values))
    return rows


def _values(drawn: Sequence[_Case], measure: Measure, weights: Weights) -> list[float]:
    found = []
    for case in drawn:
        try:
            value = measure(case, weights(case.gram).double())
        except ArithmeticError:
            continue  # the reference gave up: nothing to compare with
        if value is not None:
            found.append(value if math.isfinite(value) else math.inf)
    return found


def _row(peer: str, method: str, family: str, tasks: int, measure: str, values: list[float]) -> Row:
    return {
        "implementation": peer, "method": method, "family": family, "tasks": tasks, "cases": len(values),
        "measure": measure,
        "median": statistics.median(values) if values else None,
        "worst": max(values, default=None),
    }  # fmt: skip


def _ball_shortfall(case: _Case, weights: Tensor) -> float:
    rows = case.rows
    mean, direction = rows.mean(dim=0), weights @ rows
    radius = C * mean.norm()
    value = (rows @ direction).min().item()
    best = case.best_in_ball
    outside = ((direction - mean).norm() / radius).item() - 1.0
    # Relative to the value, or (where it vanishes) to the improvement that the ball's radius can make.
    scale = max(abs(best), 1e-3 * (radius * rows.norm(dim=1).min()).item())
    return float(max((best - value) / scale, outside, 0.0))


def _cone_shortfall(case: _Case, weights: Tensor) -> float | None:
    if case.best_in_cap <= 0.0:  # the program shortens a direction that improves nothing, ConicGrad does not
        return None
    rows = case.rows
    mean, direction = rows.mean(dim=0), weights @ rows
    unit = direction / direction.norm()
    value = (rows @ unit).min().item()
    best = case.best_in_cap
    outside = _CONE - (unit @ mean / mean.norm()).item()
    scale = max(abs(best), 1e-3 * rows.norm(dim=1).min().item())
    return float(max((best - value) / scale, outside, 0.0))


def _if_solvable(residual: Callable[[Tensor, Tensor], float]) -> Measure:
    return lambda case, weights: residual(case.gram, weights) if case.solvable else None


def _gap(lam: float) -> Measure:
    return lambda case, weights: simplex_gap(case.gram, simplex_part(weights, lam), lam)


_ALL_MEASURES: dict[str, tuple[str, Measure]] = {
    "cagrad": ("shortfall to conic solver", _ball_shortfall),
    "conicgrad": ("shortfall to conic solver", _cone_shortfall),
    "fairgrad": ("fixed-point residual", _if_solvable(fairness_residual)),
    "mgda": ("KKT gap", _gap(0.0)),
    "nash_mtl": ("fixed-point residual", _if_solvable(bargaining_residual)),
    "sdmgrad": ("KKT gap", _gap(LAM)),
}
_MEASURES = {name: measure for name, measure in _ALL_MEASURES.items() if name in COMBINERS}
METHODS = tuple(_MEASURES)
