"""Logged numbers of agent and combiner over training, and whether they predict the final scores.

Identifiers of difficulty (conflict, norms, weights, losses) are compared with the final score by rank: do
they order methods and tasks as the score does?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mtrl.report import stats
from mtrl.report.comparison import Comparison, Floats, Group
from mtrl.report.load import Line, Run
from mtrl.report.table import Cell, Table

Network = Literal["critic", "actor"]
NETWORKS: tuple[Network, ...] = ("critic", "actor")
_TAU = (
    "Kendall's tau with the ranking by final score. 1: same order, -1: reversed; p: chance of that if the "
    "two had nothing to do with each other."
)


class Series(NamedTuple):
    """Means over runs at their common log lines; shape [K], [K, T] or [K, T, T]."""

    steps: Floats  # [K]
    values: Floats


def scalar(runs: Sequence[Run], network: Network, quantity: str) -> Series | None:
    """Return a number of the combiner over time [K], such as `conflict_fraction`; None where not logged."""
    return _series(runs, (f"grad/{network}_{quantity}", f"{network}/{quantity}"), lambda value: value)


def per_task(runs: Sequence[Run], tasks: Sequence[str], network: Network, quantity: str) -> Series | None:
    """Return numbers per task over time [K, T]: `weight`, `grad_norm` or `loss`."""
    names: tuple[str, ...] = (f"{network}_{quantity}", f"{network}/{quantity}")
    if quantity == "weight" and network == "critic":
        names = (*names, "weight")  # the critic's weights went by the plain name at first
    return _series(runs, names, lambda value: [value.get(task) for task in tasks])


def cosines(runs: Sequence[Run], tasks: Sequence[str], network: Network) -> Series | None:
    """Return the cosines between the tasks' gradients over time [K, T, T]."""

    def matrix(value: Any) -> list[list[float]]:
        # Of two tasks only one order is written.
        def between(a: str, b: str) -> float:
            found = value.get(a, {}).get(b, value.get(b, {}).get(a))
            return np.nan if found is None else float(found)

        return [[1.0 if a == b else between(a, b) for b in tasks] for a in tasks]

    return _series(runs, (f"{network}_cosine", f"{network}/cosine"), matrix)


def update_milliseconds(run: Run) -> float:
    """Return the median over log lines of the time of one update; NaN where none was logged.

    Lines without an update, those of the warm-up, do not count.
    """
    updates = int(run.config.get("train", {}).get("updates_per_step", 1))
    found = [line["time/update_ms"] for line in run.metrics if line.get("time/update_ms")]
    return float(np.median(found)) / updates if found else np.nan


def method_agreement_table(comparison: Comparison) -> Table:
    """Row per identifier of difficulty: Kendall's tau of the methods' ranking by it and by final score."""
    body: list[list[Cell]] = []
    for network in NETWORKS:
        for quantity in ("conflict_fraction", "cos_min", "cos_mean", "direction_norm_ratio"):
            known = [(row, scalar(row.finished, network, quantity)) for row in comparison.rows]
            pairs = [
                (np.nanmean(found.values), comparison.final(row).mean()) for row, found in known if found
            ]
            if len(pairs) > 2:
                identifiers, scores = np.array(pairs).T
                name = f"{network}: {quantity.replace('_', ' ')}"
                body.append([name, len(pairs), *stats.rank_agreement(identifiers, scores)])
    note = f"Does a method whose gradients conflict less score more? {_TAU}"
    columns = ("mean over training", "n", "tau", "p")
    return Table("agreement-methods", "Rank agreement over methods", columns, body, note)


def task_agreement_table(comparison: Comparison) -> Table:
    """Row per identifier of difficulty: Kendall's tau of the tasks' ranking by it and by final score."""
    body: list[list[Cell]] = []
    for network in NETWORKS:
        for quantity in ("grad_norm", "weight", "loss"):
            found = [_task_agreement(comparison, row, network, quantity) for row in comparison.rows]
            if any(tau is not None for tau in found):
                body.append([f"{network}: {quantity.replace('grad_norm', 'gradient norm')}", *found])
    note = f"Does a task with a larger gradient, weight or loss score less? {_TAU}"
    columns = ("mean over training", *(row.label for row in comparison.rows))
    return Table("agreement-tasks", "Rank agreement over tasks", columns, body, note)


def _series(runs: Sequence[Run], names: Sequence[str], read: Callable[[Any], Any]) -> Series | None:
    by_step = [_by_step(run.metrics, names) for run in runs]
    if not by_step or not all(by_step):
        return None
    common = sorted(set.intersection(*(set(lines) for lines in by_step)))
    if not common:
        return None
    values = [[read(lines[step]) for step in common] for lines in by_step]
    return Series(np.array(common, float), np.array(values, dtype=np.float64).mean(axis=0))


def _by_step(lines: Sequence[Line], names: Sequence[str]) -> Mapping[int, Any]:
    for name in names:
        found = {line["vector_step"]: line[name] for line in lines if line.get(name) is not None}
        if found:
            return found
    return {}


def _task_agreement(comparison: Comparison, row: Group, network: Network, quantity: str) -> float | None:
    found = per_task(row.finished, comparison.tasks, network, quantity)
    if found is None or len(comparison.tasks) < 3:
        return None
    means = np.nanmean(found.values, axis=0)
    return stats.rank_agreement(means, comparison.final(row).mean(axis=0))[0]
