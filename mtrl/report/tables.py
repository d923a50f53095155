"""The tables of a report."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtrl.report import signals, stats
from mtrl.report.agreement import method_agreement_table, task_agreement_table
from mtrl.report.comparison import Comparison, Floats
from mtrl.report.load import Run
from mtrl.report.protocol import Group
from mtrl.report.published import MTRL, MTRL_PER_SEED, PLUS, PUBLISHED, counterparts
from mtrl.report.table import Cell, Table

_THRESHOLDS = (0.25, 0.5, 0.75)  # of the mean success
_INTERVALS = "Brackets: 95 % percentile bootstrap"


def all_tables(comparison: Comparison) -> list[Table]:
    """Return the tables that these runs fill, most important first."""
    builders: tuple[Callable[[Comparison], Table | None], ...] = (
        final_table, per_task_table, selection_table, learning_table, improvement_table,
        method_agreement_table, task_agreement_table, published_table, runs_table,
    )  # fmt: skip
    tables = (build(comparison) for build in builders)
    return [table for table in tables if table is not None]


def final_table(comparison: Comparison) -> Table:
    """Row per group: mean and IQM with intervals, rank, chance to beat the mean, published numbers."""
    rows, success = comparison.rows, comparison.measure == "success"
    ranks = (
        stats.average_rank(np.array([comparison.final(row).mean(0) for row in rows]))
        if len(rows) > 1
        else None
    )
    columns: dict[str, list[Cell]] = {"method": [], "seeds": [], f"mean {comparison.measure}": [], "IQM": []}
    notes = [
        f"{comparison.measure.capitalize()} at the final evaluation. {_INTERVALS}: of the mean over whole "
        "runs, of the interquartile mean (IQM, all runs and tasks together) stratified by task. With few "
        "seeds both are too narrow."
    ]
    benchmark = _benchmark(comparison)
    for row in comparison.groups:
        done = bool(row.finished)
        scores = comparison.final(row) if done else None
        cells: dict[str, Cell] = {
            "method": row.label,
            "seeds": _seeds(row),
            f"mean {comparison.measure}": None if scores is None else stats.bootstrap(stats.mean, scores),
            "IQM": None if scores is None else stats.bootstrap(stats.iqm, scores, unit="task"),
        }
        if success:
            cells["at last step"] = _mean(comparison, row, "success_last")
            cells["return"] = _mean(comparison, row, "return")
        if ranks is not None:
            cells["rank"] = float(ranks[rows.index(row)]) if done else None
        if comparison.baseline is not None:
            cells["P(better than mean)"] = _improvement(comparison, row, comparison.baseline)
        if comparison.single_task:
            cells["Δm %"] = _delta_m(comparison, row)
        if benchmark is not None and success:
            cells["published, mtrl line"] = counterparts(row.method, benchmark, (MTRL, MTRL_PER_SEED))
            cells["published, Meta-World+"] = counterparts(row.method, benchmark, (PLUS,))
        for column, cell in cells.items():
            columns.setdefault(column, []).append(cell)
    if ranks is not None:
        notes.append("rank: among the methods on each task, mean over tasks, 1 is best.")
    if comparison.baseline is not None:
        notes.append("P(better than mean): chance that a run beats one of plain averaging on a task.")
    if comparison.single_task:
        notes.append(
            "Δm: mean relative drop against agents of one task each, over tasks that these score on; lower "
            "is better."
        )
    if benchmark is not None and success:
        notes.append(f"Published numbers have other protocols. mtrl line: {MTRL}; Meta-World+: {PLUS}.")
    if any(len(row.finished) < len(row.runs) for row in comparison.groups):
        notes.append("Unfinished runs are left out.")
    options = {f"{row.method} ({row.options})": None for row in comparison.groups if row.options}
    if options:
        notes.append(f"Options: {'; '.join(options)}.")
    return Table(
        "final", "Final scores", tuple(columns), list(zip(*columns.values(), strict=True)), " ".join(notes)
    )


def per_task_table(comparison: Comparison) -> Table | None:
    """Row per task: mean final score of each group; for a single group also its other numbers."""
    rows = comparison.rows
    if not rows:
        return None
    if len(rows) == 1 and comparison.measure == "success":
        keys = {"success": "success", "success at last step": "success_last", "return": "return"}
        columns = {title: comparison.final(rows[0], key) for title, key in keys.items()}
    else:
        columns = {row.label: comparison.final(row) for row in rows}
    means = [scores.mean(axis=0) for scores in columns.values()]
    body: list[list[Cell]] = [
        [task, *(float(values[index]) for values in means)] for index, task in enumerate(comparison.tasks)
    ]
    body.append(["mean", *(float(values.mean()) for values in means)])
    note = f"Mean over seeds of the final evaluation's {'numbers' if len(rows) == 1 else comparison.measure}."
    return Table("per-task", "Final scores by task", ("task", *columns), body, note)


def selection_table(comparison: Comparison) -> Table | None:
    """Row per group: the three numbers that papers report of the same curves."""
    body: list[list[Cell]] = []
    for row in comparison.rows:
        curves = comparison.curves(row)
        body.append([row.label, len(curves.steps), *stats.selection(curves.scores.mean(axis=2))])
    if not body:
        return None
    note = (
        "One set of evaluations, three rules: final: the last one (Meta-World+); best of mean: highest "
        "point of the seeds' mean curve (CARE, CAGrad, FAMO); mean of best: each seed's highest point, "
        "then the mean (Nash-MTL). The last two choose on what they report, and gain with the number of "
        f"evaluations. {_INTERVALS} over runs."
    )
    columns = ("method", "evaluations", "final", "best of mean", "mean of best")
    return Table("selection", f"{comparison.measure.capitalize()} by selection rule", columns, body, note)


def learning_table(comparison: Comparison) -> Table | None:
    """Row per group: area under the curve, steps and seconds to thresholds, time per update."""
    thresholds = _THRESHOLDS if comparison.measure == "success" else ()
    columns = ["method", "area under curve"]
    for threshold in thresholds:
        columns += [f"steps to {threshold}", f"seconds to {threshold}"]
    columns += ["ms per update", "hours per run"]
    body: list[list[Cell]] = []
    for row in comparison.rows:
        curves = comparison.curves(row)
        means = curves.scores.mean(axis=2)
        cells: list[Cell] = [row.label, stats.bootstrap(_area(curves.steps), means)]
        for threshold in thresholds:
            cells += [_reached(curves.steps, means, threshold), _reached(curves.seconds, means, threshold)]
        update = [signals.update_milliseconds(run) for run in row.runs]
        hours = np.array([run.evaluations[-1].get("wall_s") or np.nan for run in row.finished]) / 3600
        body.append([*cells, float(np.mean(update)), float(hours.mean())])
    if not body:
        return None
    note = (
        "Area: mean height of the curve between first and last evaluation. To a threshold: median over "
        "seeds of the first evaluation at or above it, with the seeds that got there. Times are of the "
        "machines named below, with whatever else ran on them."
    )
    return Table("learning", "How fast they learn", tuple(columns), body, note)


def improvement_table(comparison: Comparison) -> Table | None:
    """Matrix of groups: chance that a run of the row beats one of the column on a task."""
    rows = comparison.rows
    if len(rows) < 2:
        return None
    body: list[list[Cell]] = [
        [row.label, *(_improvement(comparison, row, other) for other in rows)] for row in rows
    ]
    note = (
        "Chance that a run of the row beats a run of the column on a task, mean over tasks, ties half. "
        f"Above .5 the row is better; settled where the bracket leaves .5 out. {_INTERVALS} over runs."
    )
    return Table(
        "improvement", "Probability of improvement", ("method", *(row.label for row in rows)), body, note
    )


def published_table(comparison: Comparison) -> Table | None:
    """Published numbers of the benchmark at hand, each with its protocol; none for other tasks."""
    benchmark = _benchmark(comparison)
    if benchmark is None or comparison.measure != "success":
        return None
    body = [
        [row.title, getattr(row, benchmark.lower()), row.protocol, row.source, row.seen]
        for row in PUBLISHED
        if getattr(row, benchmark.lower())
    ]
    columns = ("method", f"{benchmark} success", "protocol", "source", "as read in")
    return Table(
        "published",
        f"Published numbers of {benchmark}",
        columns,
        body,
        "docs/protocols.md compares the lines.",
    )


def runs_table(comparison: Comparison) -> Table:
    """Row per run: where it is, how far it got, what it ran on."""
    body: list[list[Cell]] = []
    for row in comparison.groups:
        for run in row.runs:
            last = run.evaluations[-1] if run.evaluations else {}
            value = last.get(f"mean_{comparison.measure}")
            body.append([row.label, run.seed, _status(run), value, _machine(run), str(run.path)])
    columns = ("method", "seed", "status", f"last {comparison.measure}", "machine", "directory")
    return Table("runs", "Runs", columns, body)


def _improvement(comparison: Comparison, row: Group, other: Group) -> Cell:
    if row is other or not row.finished:
        return None
    scores = (comparison.final(row), comparison.final(other))
    return stats.bootstrap(stats.probability_of_improvement, *scores)


def _delta_m(comparison: Comparison, row: Group) -> Cell:
    single = np.array([comparison.single_task[task] for task in comparison.tasks])
    scored = single > 0.0
    if not row.finished or not scored.any():
        return None

    def drop(scores: Floats) -> Floats:
        means: Floats = stats.delta_m(scores[..., scored].mean(axis=-2), single[scored])
        return means

    return stats.bootstrap(drop, comparison.final(row))


def _mean(comparison: Comparison, row: Group, key: str) -> Cell:
    return float(comparison.final(row, key).mean()) if row.finished else None


def _area(steps: Floats) -> stats.Statistic:
    return lambda curves: stats.area_under_curve(steps, curves).mean(axis=-1)


def _reached(at: Floats, curves: Floats, threshold: float) -> str:
    places = stats.first_crossing(at, curves, threshold)
    reached = places[np.isfinite(places)]
    if not len(reached):
        return "never"
    everyone = "" if len(reached) == len(places) else f" ({len(reached)} of {len(places)})"
    return f"{np.median(reached):,.0f}{everyone}"


def _seeds(row: Group) -> str:
    done = len(row.finished)
    return str(done) if done == len(row.runs) else f"{done} of {len(row.runs)} finished"


def _status(run: Run) -> str:
    return "finished" if run.finished else f"unfinished, {run.step:,} of {run.steps:,}"


def _machine(run: Run) -> str:
    versions = run.versions
    return versions.get("cuda_device") or f"{versions.get('cpu', 'CPU')}, {versions.get('cores', '?')} cores"


def _benchmark(comparison: Comparison) -> str | None:
    """MT10 or MT50, if that is what the runs are of."""
    config = comparison.runs[0].config
    name = "".join(config["tasks"]).upper() if len(config["tasks"]) == 1 else ""
    return name if config["suite"] == "metaworld" and name in ("MT10", "MT50") else None
