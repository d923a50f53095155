"""Differences between a method and plain averaging on the same seeds."""

from collections.abc import Callable, Sequence

import numpy as np

from mtrl.report import signals, stats
from mtrl.report.comparison import Comparison, Floats, curves
from mtrl.report.load import Run
from mtrl.report.table import Cell, Table

_TRAINING = "area under training success"


def paired_table(comparison: Comparison) -> Table | None:
    """Row per group: mean difference to plain averaging over common seeds; None without a baseline."""
    baseline = comparison.baseline
    if baseline is None:
        return None
    theirs = {run.seed: run for run in baseline.finished}
    pairs = {
        row: [(run, theirs[run.seed]) for run in row.finished if run.seed in theirs]
        for row in comparison.rows
        if row is not baseline
    }
    pairs = {row: found for row, found in pairs.items() if found}

    comparisons = max(len(pairs), comparison.comparisons)

    def final(runs: Sequence[Run]) -> Floats:
        last: Floats = curves(runs, comparison.tasks, comparison.measure).scores[:, -1].mean(axis=1)
        return last

    def area(runs: Sequence[Run]) -> Floats:
        found = curves(runs, comparison.tasks, comparison.measure)
        heights: Floats = stats.area_under_curve(found.steps, found.scores.mean(axis=2))
        return heights

    def training(runs: Sequence[Run]) -> Floats:
        return np.array([signals.training_success(comparison, run) for run in runs])

    def differences(scores: Callable[[Sequence[Run]], Floats]) -> list[Floats]:
        # Both sides at once: curves have then the steps that all of these runs have, and areas the same span.
        both = (
            scores([run for side in zip(*found, strict=True) for run in side]) for found in pairs.values()
        )
        return [ours - others for ours, others in (np.split(found, 2) for found in both)]

    measures = {f"final {comparison.measure}": differences(final), "area under curve": differences(area)}
    in_training = differences(training)
    unknown = sum(int(np.isnan(apart).sum()) for apart in in_training)
    if unknown < sum(len(apart) for apart in in_training):
        measures[_TRAINING] = in_training
    body: list[list[Cell]] = [
        [
            row.label,
            len(found),
            *(stats.paired(_known(rows[index]), comparisons=comparisons) for rows in measures.values()),
        ]
        for index, (row, found) in enumerate(pairs.items())
    ]
    together = ""
    if comparisons > 1:
        planned = (
            f"{comparisons} planned comparisons" if comparisons > len(pairs) else f"all {comparisons} rows"
        )
        together = f", for {planned} of a column together (Bonferroni)"
    note = (
        f"Score less that of {baseline.label} with the same seed. These runs share goals and initial "
        "networks, so their differences vary less than those of runs of different seeds. Brackets: 95 % of "
        f"Student's t{together}. If an interval contains 0, the difference may be chance."
    )
    if _TRAINING in measures:
        note += f" {_TRAINING.capitalize()}: mean over log lines of the success rate of training episodes."
        if unknown:
            note += (
                f" {unknown} pair{'s' * (unknown > 1)} without it in their logs are left out of that column."
            )
    return Table("paired", "Paired differences", ("method", "seeds", *measures), body, note, decimals=3)


def _known(numbers: Floats) -> Floats:
    return numbers[~np.isnan(numbers)]
