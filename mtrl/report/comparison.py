"""Runs of one protocol as arrays: what tables and figures are drawn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtrl.config.presets import differences
from mtrl.errors import UserError
from mtrl.report.load import Run, read_runs
from mtrl.report.protocol import Group, group, protocol

Floats = NDArray[np.float64]
Measure = Literal["success", "return"]


class Curves(NamedTuple):
    """Evaluations of the finished runs of a group, R runs at K common steps."""

    steps: Floats  # [K] vector steps
    seconds: Floats  # [R, K] since the start of each run
    scores: Floats  # [R, K, T]


class Comparison(NamedTuple):
    """Groups of runs of one protocol; the tables' rows and the figures' colours."""

    groups: tuple[Group, ...]
    tasks: tuple[str, ...]  # T
    measure: Measure  # what a score is
    single_task: dict[str, float]  # task -> mean score of agents that were trained on it alone

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, row by row."""
        return tuple(run for row in self.groups for run in row.runs)

    @property
    def rows(self) -> tuple[Group, ...]:
        """Groups with a finished run: the others have no final score."""
        return tuple(row for row in self.groups if row.finished)

    @property
    def baseline(self) -> Group | None:
        """The plain mean of gradients, which others are compared with, if exactly one row is that."""
        rows = [row for row in self.rows if row.method == "mean"]
        return rows[0] if len(rows) == 1 and len(self.rows) > 1 else None

    def final(self, row: Group, key: str | None = None) -> Floats:
        """Scores [R, T] of the final evaluations, or another number of theirs (`success_last`, `return`)."""
        return _scores([[run.evaluations[-1]] for run in row.finished], self.tasks, key or self.measure)[:, 0]

    def curves(self, row: Group) -> Curves:
        """Evaluations that all finished runs of a row have."""
        return curves(row.finished, self.tasks, self.measure)


def compare(
    paths: Iterable[Path], *, single_task: Iterable[Path] = (), measure: Measure | None = None
) -> Comparison:
    """Read runs and sweeps and group them.

    Args:
        paths: run directories and folders of them.
        single_task: the same for agents of one task each, whose scores Delta m is taken against.
        measure: success where the suite has one, else the return.

    Raises:
        UserError: no run, no evaluation anywhere, or runs that cannot share a table (names the difference).
    """
    runs = read_runs(paths)
    evaluated = [run for run in runs if run.evaluations]
    if not evaluated:
        raise UserError(f"no evaluation yet in {len(runs)} run(s), the first is '{runs[0].path}'.")
    groups = tuple(group(runs))
    has_success = all(_has_success(run) for run in evaluated)
    if measure == "success" and not has_success:
        raise UserError("these runs have no success rates. Use --measure return.")
    chosen = measure or ("success" if has_success else "return")
    baselines = _single_task(read_runs(single_task), evaluated[0], chosen) if single_task else {}
    return Comparison(groups, evaluated[0].tasks, chosen, baselines)


def curves(runs: Sequence[Run], tasks: Sequence[str], key: str) -> Curves:
    """Return the evaluations at the steps that all `runs` have: a longer run shares its beginning."""
    by_step = [{line["vector_step"]: line for line in run.evaluations} for run in runs]
    common = sorted(set.intersection(*(set(lines) for lines in by_step)))
    picked = [[lines[step] for step in common] for lines in by_step]
    seconds = [[line.get("wall_s") or np.nan for line in lines] for lines in picked]
    return Curves(np.array(common, float), np.array(seconds, float), _scores(picked, tasks, key))


def _scores(lines: Sequence[Sequence[Any]], tasks: Sequence[str], key: str) -> Floats:
    values = [[[line["tasks"][task].get(key) for task in tasks] for line in row] for row in lines]
    return np.array(values, dtype=np.float64)  # null, a number that was not finite, becomes NaN


def _has_success(run: Run) -> bool:
    return all(values.get("success") is not None for values in run.evaluations[-1]["tasks"].values())


def _single_task(runs: Sequence[Run], multi: Run, key: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        apart = differences(protocol(multi), protocol(run))
        apart.pop("tasks", None)
        if not run.finished or len(run.tasks) != 1 or apart:
            reason = "is unfinished" if not run.finished else f"has tasks {', '.join(run.tasks)}"
            if apart:
                reason = "differs in " + "; ".join(f"{name}: {a} and {b}" for name, (a, b) in apart.items())
            raise UserError(f"'{run.path}' is no single-task counterpart of '{multi.path}': it {reason}.")
        found.setdefault(run.tasks[0], []).append(float(run.evaluations[-1]["tasks"][run.tasks[0]][key]))
    missing = [task for task in multi.tasks if task not in found]
    if missing:
        raise UserError(f"Delta m needs a single-task run of every task; none of {', '.join(missing)}.")
    return {task: float(np.mean(values)) for task, values in found.items()}
