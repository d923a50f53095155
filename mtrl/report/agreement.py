"""Do identifiers of difficulty order methods and tasks as the final score does?"""

from __future__ import annotations

import numpy as np

from mtrl.report import signals, stats
from mtrl.report.comparison import Comparison
from mtrl.report.protocol import Group
from mtrl.report.table import Cell, Table

_TAU = (
    "Kendall's tau with the ranking by final score. 1: same order, -1: reversed; p: chance of that if the "
    "two had nothing to do with each other."
)


def method_agreement_table(comparison: Comparison) -> Table | None:
    """Row per identifier of difficulty: Kendall's tau of the methods' ranking by it and by final score."""
    body: list[list[Cell]] = []
    for network in signals.NETWORKS:
        for quantity in ("conflict_fraction", "cos_min", "cos_mean", "direction_norm_ratio"):
            known = [(row, signals.scalar(row.finished, network, quantity)) for row in comparison.rows]
            pairs = [
                (np.nanmean(found.values), comparison.final(row).mean()) for row, found in known if found
            ]
            if len(pairs) > 2:
                identifiers, scores = np.array(pairs).T
                name = f"{network}: {quantity.replace('_', ' ')}"
                body.append([name, len(pairs), *stats.rank_agreement(identifiers, scores)])
    if not body:
        return None
    note = f"Does a method whose gradients conflict less score more? {_TAU}"
    columns = ("mean over training", "n", "tau", "p")
    return Table("agreement-methods", "Rank agreement over methods", columns, body, note)


def task_agreement_table(comparison: Comparison) -> Table | None:
    """Row per identifier of difficulty: Kendall's tau of the tasks' ranking by it and by final score."""
    body: list[list[Cell]] = []
    for network in signals.NETWORKS:
        for quantity in ("grad_norm", "weight", "loss"):
            found = [_task_agreement(comparison, row, network, quantity) for row in comparison.rows]
            if any(tau is not None for tau in found):
                body.append([f"{network}: {quantity.replace('grad_norm', 'gradient norm')}", *found])
    if not body:
        return None
    note = f"Does a task with a larger gradient, weight or loss score less? {_TAU}"
    columns = ("mean over training", *(row.label for row in comparison.rows))
    return Table("agreement-tasks", "Rank agreement over tasks", columns, body, note)


def _task_agreement(
    comparison: Comparison, row: Group, network: signals.Network, quantity: str
) -> float | None:
    found = signals.per_task(row.finished, comparison.tasks, network, quantity)
    if found is None or len(comparison.tasks) < 3:
        return None
    means = np.nanmean(found.values, axis=0)
    return stats.rank_agreement(means, comparison.final(row).mean(axis=0))[0]
