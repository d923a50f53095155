"""Differences between a method and plain averaging on the same seeds."""

from collections.abc import Callable

import numpy as np

from mtrl.report import signals, stats
from mtrl.report.comparison import Comparison, Floats, Group
from mtrl.report.table import Cell, Table

Scores = Callable[[Group], Floats]  # a number of each finished run of a row [R]


def paired_table(comparison: Comparison) -> Table | None:
    """Row per group: mean difference to plain averaging over the seeds that both have; None without pairs."""
    baseline = comparison.baseline
    if baseline is None:
        return None
    seeds = {row: _shared_seeds(row, baseline) for row in comparison.rows if row is not baseline}
    rows = [row for row, shared in seeds.items() if shared]

    def final(row: Group) -> Floats:
        found: Floats = comparison.final(row).mean(axis=1)
        return found

    def area(row: Group) -> Floats:
        curves = comparison.curves(row)
        found: Floats = stats.area_under_curve(curves.steps, curves.scores.mean(axis=2))
        return found

    def training(row: Group) -> Floats:
        return np.array([signals.training_success(comparison, run) for run in row.finished])

    measures: dict[str, Scores] = {f"final {comparison.measure}": final, "area under curve": area}
    if not any(np.isnan(training(row)).any() for row in (baseline, *rows)):
        measures["area under training success"] = training

    def difference(row: Group, scores: Scores) -> stats.Interval:
        ours, theirs = (
            {run.seed: score for run, score in zip(own.finished, scores(own), strict=True)}
            for own in (row, baseline)
        )
        apart = np.array([ours[seed] - theirs[seed] for seed in seeds[row]])
        return stats.paired(apart, comparisons=len(rows))

    body: list[list[Cell]] = [
        [row.label, len(seeds[row]), *(difference(row, scores) for scores in measures.values())]
        for row in rows
    ]
    together = f", for all {len(rows)} rows of a column together (Bonferroni)" if len(rows) > 1 else ""
    note = (
        f"Score less that of {baseline.label} with the same seed: these runs share goals, initial networks "
        "and warm-up, so their differences vary less than their scores. Brackets: 95 % of Student's "
        f"t{together}. If an interval contains 0, the difference may be chance."
    )
    if "area under training success" in measures:
        note += " Area under training success: mean over log lines of the success rate of training episodes."
    return Table("paired", "Paired differences", ("method", "seeds", *measures), body, note, decimals=3)


def _shared_seeds(row: Group, other: Group) -> list[int]:
    return sorted({run.seed for run in row.finished} & {run.seed for run in other.finished})
