"""Logged numbers of agent and combiner over training, and whether they predict the final scores.

Indicators of difficulty (conflict, norms, weights, losses) are compared with the final score by rank: do
they order methods and tasks as the score does?
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from mtrl.errors import UserError
from mtrl.report import stats
from mtrl.report.comparison import Comparison, Floats, Group
from mtrl.report.lines import Line, number
from mtrl.report.load import Run
from mtrl.report.table import Cell, Table
from mtrl.runs.directory import METRICS_NAME

Network = Literal["critic", "actor"]
Source = Literal["critic", "actor", "training"]  # of numbers by task; "training": its episodes
NETWORKS: tuple[Network, ...] = ("critic", "actor")
_MOST_LINES = 128  # of a log that are read, evenly spread: enough for a figure and for a mean over training
_SCALARS = ("conflict_fraction", "cos_mean", "cos_min", "direction_norm_ratio")
_PER_TASK = ("weight", "grad_norm", "loss")
_TAU = "Kendall's tau with the ranking by final score. 1: same order, -1: reversed."


class Series(NamedTuple):
    """Means over runs at their common log lines; shape [K] or [K, T]."""

    steps: Floats  # [K]
    values: Floats


class _Logged(NamedTuple):
    """The numbers of a run's log that a report needs."""

    series: Mapping[tuple[str, str], Series]  # (network, quantity)
    cosines: Mapping[str, Floats]  # network -> mean over training [T, T]
    training_success: float  # mean over training; NaN: not logged
    update_milliseconds: float


def scalar(comparison: Comparison, row: Group, network: Network, quantity: str) -> Series | None:
    """Return a number of the combiner over time [K], such as `conflict_fraction`; None where not logged."""
    return _mean_series(comparison, row, (network, quantity))


def per_task(comparison: Comparison, row: Group, source: Source, quantity: str) -> Series | None:
    """Return numbers per task over time [K, T]; None where not logged.

    Of a network `weight`, `grad_norm` and `loss`, of training episodes `success` and `return`.
    """
    return _mean_series(comparison, row, (source, quantity))


def cosines(comparison: Comparison, row: Group, network: Network) -> Floats | None:
    """Return the cosines between the tasks' gradients, mean over training and runs [T, T]."""
    found = [_logged(comparison, run).cosines.get(network) for run in row.finished or row.runs]
    known = [matrix for matrix in found if matrix is not None]
    return np.mean(known, axis=0) if known and len(known) == len(found) else None


def update_milliseconds(comparison: Comparison, row: Group) -> Floats:
    """Return the median over log lines of the time of one update of each run [R]; NaN where none was logged.

    Lines of the warm-up, which have no update, do not count.
    """
    runs = row.finished or row.runs
    return np.array([_logged(comparison, run).update_milliseconds for run in runs])


def training_success(comparison: Comparison, run: Run) -> float:
    """Return the mean success rate of a run's training episodes over its log lines; NaN where not logged."""
    return _logged(comparison, run).training_success


def method_agreement_table(comparison: Comparison) -> Table:
    """Row per indicator of difficulty: Kendall's tau of the methods' ranking by it and by final score."""
    body: list[list[Cell]] = []
    for network in NETWORKS:
        for quantity in _SCALARS:
            known = [(row, scalar(comparison, row, network, quantity)) for row in comparison.rows]
            pairs = [
                (stats.mean_of_known(found.values), comparison.final(row).mean())
                for row, found in known
                if found
            ]
            if len(pairs) > 2:
                identifiers, scores = np.array(pairs).T
                name = f"{network}: {quantity.replace('_', ' ')}"
                body.append([name, len(pairs), *stats.rank_agreement(identifiers, scores)])
    p = "p: chance of a tau at least as far from 0 if the two rankings were unrelated."
    note = f"Does a method whose gradients conflict less score higher? {_TAU} {p}"
    columns = ("mean over training", "n", "tau", "p")
    return Table("agreement-methods", "Rank agreement over methods", columns, body, note)


def task_agreement_table(comparison: Comparison) -> Table:
    """Row per indicator of difficulty: Kendall's tau of the tasks' ranking by it and by final score."""
    body: list[list[Cell]] = []
    for network in NETWORKS:
        for quantity in ("grad_norm", "weight", "loss"):
            found = [_task_agreement(comparison, row, network, quantity) for row in comparison.rows]
            if any(tau is not None for tau in found):
                body.append([f"{network}: {quantity.replace('grad_norm', 'gradient norm')}", *found])
    note = f"Does a task with a larger gradient, weight or loss score lower? {_TAU}"
    columns = ("mean over training", *(row.label for row in comparison.rows))
    return Table("agreement-tasks", "Rank agreement over tasks", columns, body, note)


def _task_agreement(comparison: Comparison, row: Group, network: Network, quantity: str) -> float | None:
    found = per_task(comparison, row, network, quantity)
    if found is None or len(comparison.tasks) < 3:
        return None
    means = stats.mean_of_known(found.values, axis=0)
    return stats.rank_agreement(means, comparison.final(row).mean(axis=0))[0]


def _mean_series(comparison: Comparison, row: Group, key: tuple[str, str]) -> Series | None:
    found = [_logged(comparison, run).series.get(key) for run in row.finished or row.runs]
    known = [series for series in found if series is not None]
    if not known or len(known) < len(found):
        return None
    common = sorted(set.intersection(*(set(series.steps.tolist()) for series in known)))
    if not common:
        return None
    values = [series.values[np.isin(series.steps, common)] for series in known]
    return Series(np.array(common), np.mean(values, axis=0))


def _logged(comparison: Comparison, run: Run) -> _Logged:
    return comparison.once(("logged", run), lambda: _read(run, comparison.tasks))


def _read(run: Run, tasks: Sequence[str]) -> _Logged:
    """Read a run's log once and keep only the numbers of tables and figures."""
    points: dict[tuple[str, str], dict[float, Any]] = {}
    matrices: dict[str, list[Floats]] = {}
    update_ms, success = [], []
    for line in run.some_metrics(_MOST_LINES):
        try:
            for key, value in _numbers(line, tasks):
                points.setdefault(key, {})[float(line["vector_step"])] = value
            for network in NETWORKS:
                matrix = line.get(f"{network}_cosine")
                if matrix is not None:
                    matrices.setdefault(network, []).append(_matrix(matrix, tasks))
            updates, milliseconds = (
                number(line.get(f"time/{key}")) for key in ("updates_per_step", "update_ms")
            )
            if updates > 0.0 <= milliseconds:  # false if one is NaN: older logs lack updates_per_step
                update_ms.append(milliseconds / updates)
            if (rate := line.get("rollout/success_rate")) is not None:
                success.append(number(rate))
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{run.path / METRICS_NAME}, the line of vector step {line['vector_step']}: expected "
                f"numbers, numbers by task or numbers by pair of tasks ({error})."
            ) from error
    return _Logged(
        {
            key: Series(np.array(sorted(found)), np.array([found[step] for step in sorted(found)]))
            for key, found in points.items()
        },
        {network: stats.mean_of_known(np.array(found), axis=0) for network, found in matrices.items()},
        float(np.mean(success)) if success else np.nan,
        float(np.median(update_ms)) if update_ms else np.nan,
    )


def _numbers(line: Line, tasks: Sequence[str]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield the numbers of a line as floats or arrays [T]."""
    for network in NETWORKS:
        for quantity in _SCALARS:
            value = line.get(f"grad/{network}_{quantity}")
            if value is not None:
                yield (network, quantity), number(value)
        for quantity in _PER_TASK:
            # The weights of the critic are logged as "weight".
            key = "weight" if (network, quantity) == ("critic", "weight") else f"{network}_{quantity}"
            if (value := line.get(key)) is not None:
                yield (network, quantity), _by_task(value, tasks)
    for quantity in ("success", "return"):
        if (value := line.get(f"training_{quantity}")) is not None:
            yield ("training", quantity), _by_task(value, tasks)


def _by_task(value: Any, tasks: Sequence[str]) -> Any:
    return np.array([number(value.get(task)) for task in tasks], np.float32)  # half the memory of float64


def _matrix(value: Any, tasks: Sequence[str]) -> Floats:
    matrix = np.eye(len(tasks))
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks[:i]):  # a pair of tasks is logged in one order
            found = value.get(a, {}).get(b, value.get(b, {}).get(a))
            matrix[i, j] = matrix[j, i] = number(found)
    return matrix
