"""The tables of a report, and the published numbers beside ours.

Two lines of work use the names MT10 and MT50 for different benchmarks (docs/protocols.md). Numbers are
comparable only within a line.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtrl.report import signals, stats
from mtrl.report.comparison import Comparison, Floats, Group, curves
from mtrl.report.paired import paired_table
from mtrl.report.table import Cell, Table, plain

_THRESHOLDS = (0.25, 0.5, 0.75)  # of the mean success
_INTERVALS = "Brackets: 95 % percentile bootstrap"
MOST_ROWS = 24  # rows that figures and the matrix of all pairs of rows have at most: nobody reads more
MTRL = "v1 tasks and rewards, 1 goal, 150 steps, best of mean curve, 10 seeds ± s.e."
MTRL_PER_SEED = "v1 tasks and rewards, 1 goal, 150 steps, mean of seeds' best, 10 seeds ± s.e."
PLUS = "v3 tasks, v2 rewards, 50 goals, 500 steps, 2M steps, final, IQM of 10 seeds [95 %]"


class Published(NamedTuple):
    """Success on MT10 and MT50 as published, with its protocol."""

    method: str | None  # the same method here, if there is one
    title: str  # in its paper
    mt10: str
    mt50: str
    protocol: str
    source: str
    seen: str  # where it was read: in the paper, in files that its authors publish, or second-hand
    agent: str = "sac"


_READ, _FILES, _SECOND = "paper", "authors' files", "second-hand"

PUBLISHED = (
    Published("mean", "SAC without task identity", ".49 ± .07", ".36 ± .01", MTRL, "CAGrad, table 3", _READ),
    Published(None, "SAC with task encoder", ".54 ± .05", ".40 ± .02", MTRL, "CAGrad, table 3", _READ),
    Published(None, "Multi-head SAC", ".61 ± .04", ".45 ± .06", MTRL, "CAGrad, table 3", _READ),
    Published("pcgrad", "PCGrad", ".72 ± .02", ".50 ± .02", MTRL, "CAGrad, table 3", _READ),
    Published(None, "Soft modularization", ".73 ± .04", ".50 ± .04", MTRL, "CAGrad, table 3", _READ),
    Published("uw", "UW", ".77 ± .05", "", MTRL, "FAMO, table 4", _READ),
    Published("cagrad", "CAGrad", ".83 ± .05", ".52 ± .02", MTRL, "CAGrad, table 3", _READ),
    Published("cagrad_fast", "CAGrad-Fast", ".82 ± .04", ".50 ± .02", MTRL, "CAGrad, table 3", _READ),
    Published(None, "CARE", ".84 ± .05", ".54 ± .03", MTRL, "CAGrad, table 3", _READ),
    Published("famo", "FAMO", ".83 ± .05", "", MTRL, "FAMO, table 4", _READ),
    Published("fairgrad", "FairGrad, alpha 2", ".84 ± .07", "", MTRL, "NTKMTL, table 4", _READ),
    Published("conicgrad", "ConicGrad", ".89", "", MTRL, "ConicGrad", _SECOND),
    Published("nash_mtl", "Nash-MTL, every step", ".91 ± .03", "", MTRL_PER_SEED, "Nash-MTL, table 4", _READ),
    Published("nash_mtl", "Nash-MTL, rerun", ".80 ± .13", "", MTRL, "FAMO, table 4", _READ),
    Published("imgrad", "IMGrad", ".93 ± .07", "", MTRL, "IMGrad", _READ),
    Published(None, "NTKMTL", ".96 ± .03", "", MTRL, "NTKMTL, table 4", _READ),
    Published("aligned_mtl", "Aligned-MTL", ".97 ± .05", "", MTRL, "Aligned-MTL", _READ),
    Published(None, "One SAC per task", ".90 ± .03", ".74 ± .04", MTRL, "CAGrad, table 3", _READ),
    Published("mean", "Multi-head, 3x400", ".75 [.73, .77]", ".55 [.55, .55]", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "Soft modularization", ".81 [.77, .87]", ".66 [.65, .67]", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "MOORE", ".81 [.79, .84]", ".65 [.64, .66]", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "PaCo", ".74 [.73, .75]", ".59 [.57, .60]", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "Multi-head, 3x1024", ".87", ".73", PLUS, "rainx0r/mtrl", _FILES),
    Published(None, "Multi-head, 3x4096", ".94", ".83", PLUS, "rainx0r/mtrl", _FILES),
)  # fmt: skip


def all_tables(comparison: Comparison) -> list[Table]:
    """Return the tables that these runs fill, most important first."""
    builders: tuple[Callable[[Comparison], Table | None], ...] = (
        final_table, per_task_table, selection_table, learning_table, improvement_table, paired_table,
        signals.method_agreement_table, signals.task_agreement_table, published_table, runs_table,
    )  # fmt: skip
    tables = (build(comparison) for build in builders)
    return [table for table in tables if table is not None and table.rows]


def final_table(comparison: Comparison) -> Table:
    """Row per group: mean and IQM with intervals, rank, chance to beat plain averaging, published numbers."""
    rows, measure, baseline = comparison.rows, comparison.measure, comparison.baseline
    notes = [
        f"{measure.capitalize()} at the final evaluation. {_INTERVALS}: of the mean over whole runs, of the "
        "interquartile mean (IQM, all runs and tasks together) stratified by task. With few seeds "
        "these intervals are too narrow."
    ]

    def mean_of(key: str) -> Callable[[Group], Cell]:
        return lambda row: float(comparison.final(row, key).mean())

    # Columns of the final evaluation; they stay empty for groups without a finished run.
    scored: dict[str, Callable[[Group], Cell]] = {f"mean {measure}": comparison.mean, "IQM": comparison.iqm}
    if measure == "success":
        scored |= {"at last step": mean_of("success_last"), "return": mean_of("return")}
    if len(rows) > 1:
        means = np.array([comparison.final(row).mean(axis=0) for row in rows]).round(9)  # equal means tie
        ranks = dict(zip(rows, stats.average_rank(means).tolist(), strict=True))
        scored["rank"] = ranks.__getitem__
        notes.append("rank: among the rows on each task, mean over tasks; 1 is best.")
    if baseline is not None:
        scored["P(better than mean)"] = lambda row: _improvement(comparison, row, baseline)
        notes.append("P(better than mean): chance that a run beats a run of plain averaging on a task.")
    plain_rows = sum(row.method == "mean" for row in rows)
    if plain_rows == 0 and len(rows) > 1:
        begun = any(row.method == "mean" for row in comparison.groups)
        why = "its runs are unfinished" if begun else "none has the method mean"
        notes.append(f"No row is compared with plain averaging: {why}.")
    if plain_rows > 1:
        notes.append(
            f"No row is compared with plain averaging: {plain_rows} rows have it. --methods selects one."
        )
    if comparison.single_task:
        scored["Δm %"] = lambda row: _delta_m(comparison, row)
        notes.append(
            "Δm: mean relative drop against agents of one task each, over the tasks on which these score; "
            "lower is better."
        )
    published = _published(comparison)
    if published:
        notes.append(
            f"Published numbers have other protocols. Papers on facebookresearch/mtrl: {MTRL}; "
            f"Meta-World+: {PLUS}."
        )
    if any(len(row.finished) < len(row.runs) for row in comparison.groups):
        notes.append("Unfinished runs do not count.")
    options = {f"{plain(row.method)} ({row.options})": None for row in comparison.groups if row.options}
    if options and len(options) <= MOST_ROWS:
        notes.append(f"Options: {'; '.join(options)}.")

    body: list[list[Cell]] = []
    for row in comparison.groups:
        cells = [cell(row) if row.finished else None for cell in scored.values()]
        for protocols in ((MTRL, MTRL_PER_SEED), (PLUS,)) if published else ():
            config = row.runs[0].config
            own = [
                (other, success)
                for other, success in published
                if other.method == row.method and other.agent == config.get("agent", other.agent)
            ]
            cells.append(" / ".join(success for other, success in own if other.protocol in protocols) or None)
        body.append([row.label, _seeds(row), *cells])
    columns = ["method", "seeds", *scored]
    columns += ["published, facebookresearch/mtrl", "published, Meta-World+"] if published else []
    best = tuple(name for name in scored if name not in ("rank", "Δm %"))
    title, note = "Final scores", " ".join(notes)
    return Table("final", title, tuple(columns), body, note, best=best, lowest=("rank", "Δm %"))


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
    what = "the numbers" if len(rows) == 1 else comparison.measure
    note = f"Mean over seeds of {what} at the final evaluation."
    return Table("per-task", "Final scores by task", ("task", *columns), body, note)


def selection_table(comparison: Comparison) -> Table:
    """Row per group: the three numbers that papers report of the same curves."""
    body: list[list[Cell]] = []
    for row in comparison.rows:
        curves = comparison.curves(row)
        body.append([row.label, len(curves.steps), *stats.selection(curves.scores.mean(axis=2))])
    note = (
        "Three rules on the same evaluations. final: the last one (Meta-World+). best of mean: highest point "
        "of the seeds' mean curve (CARE, CAGrad, FAMO). mean of best: each seed's highest point, then the "
        "mean (Nash-MTL). The last two select by the numbers that they report, so they grow with the number "
        f"of evaluations. {_INTERVALS} over runs."
    )
    columns = ("method", "evaluations", "final", "best of mean", "mean of best")
    title = f"{comparison.measure.capitalize()} by selection rule"
    return Table("selection", title, columns, body, note, best=columns[2:])


def learning_table(comparison: Comparison) -> Table:
    """Row per group: area under the curve, steps and seconds to thresholds, time per update."""
    thresholds = _THRESHOLDS if comparison.measure == "success" else ()
    body: list[list[Cell]] = []
    steps = [set(comparison.curves(row).steps) for row in comparison.rows]
    common = sorted(set.intersection(*steps)) if steps else []
    for row in comparison.rows:
        curves = comparison.curves(row)
        means = curves.scores.mean(axis=2)
        kept = np.isin(curves.steps, common)  # one span for all rows: a run may have lost an evaluation
        area = stats.bootstrap(_area(curves.steps[kept]), means[:, kept])
        cells: list[Cell] = [row.label, area]
        for threshold in thresholds:
            cells += [_reached(curves.steps, means, threshold), _reached(curves.seconds, means, threshold)]
        hours = np.array([run.evaluations[-1].get("wall_s") or np.nan for run in row.finished]) / 3600
        update = signals.update_milliseconds(comparison, row)
        body.append([*cells, float(stats.mean_of_known(update)), float(hours.mean())])
    note = (
        "Area: mean height of the curve over the evaluations that all runs have. To a threshold: first "
        "evaluation at or above it, median over the seeds that reached it, with their number if some did "
        "not. Times depend on the machines, listed under Runs, and on other programs."
    )
    reaching = [f"{unit} to {threshold}" for threshold in thresholds for unit in ("steps", "seconds")]
    columns = ("method", "area under curve", *reaching, "ms per update", "hours per run")
    best, lowest = columns[1:2], columns[-2:]
    return Table("learning", "Speed of learning", columns, body, note, best=best, lowest=lowest)


def improvement_table(comparison: Comparison) -> Table | None:
    """Matrix of groups: chance that a run of the row beats one of the column on a task."""
    rows = comparison.best(MOST_ROWS)
    if len(rows) < 2:
        return None
    body = [[row.label, *(_improvement(comparison, row, other) for other in rows)] for row in rows]
    note = (
        "Chance that a run of the row beats a run of the column on a task, mean over tasks; ties count half. "
        f"Above .5 the row is better. {_INTERVALS} over runs. They hold for one pair each and are too narrow "
        "with fewer than about ten seeds: one that excludes .5 is a hint, not a test. Paired differences "
        f"correct for the number of rows.{only_best(rows, comparison)}"
    )
    columns = ("method", *(row.label for row in rows))
    return Table("improvement", "Probability of improvement", columns, body, note)


def only_best(rows: Sequence[Group], comparison: Comparison) -> str:
    """Return the sentence that tells that not all rows are shown; empty if all are."""
    total = len(comparison.rows)
    return f" Shown: the {len(rows)} of {total} rows with the best final mean." if len(rows) < total else ""


def published_table(comparison: Comparison) -> Table | None:
    """Published numbers of the benchmark at hand, each with its protocol; none for other tasks."""
    found = _published(comparison)
    if not found:
        return None
    body = [[row.title, success, row.protocol, row.source, row.seen] for row, success in found]
    benchmark, note = _benchmark(comparison), "docs/protocols.md compares the protocols."
    columns = ("method", f"{benchmark} success", "protocol", "source", "as read in")
    return Table("published", f"Published numbers of {benchmark}", columns, body, note)


def runs_table(comparison: Comparison) -> Table:
    """Row per run: its directory, progress and machine."""
    body: list[list[Cell]] = []
    absolute = [run.path.absolute().parent for run in comparison.runs if run.path.is_absolute()]
    above = os.path.commonpath(absolute) if absolute else ""  # the page shows no absolute paths
    for row in comparison.groups:
        for run in row.runs:
            score = None
            if run.evaluations:
                score = float(curves([run], comparison.tasks, comparison.measure).scores[0, -1].mean())
            status = "finished" if run.finished else f"unfinished, {run.step:,} of {run.steps:,}"
            known = run.versions
            cores = known.get("cores", "?")
            cpu = f"{known.get('cpu', 'CPU')}, {cores} core{'' if cores == '1' else 's'}"
            machine = known.get("cuda_device") or cpu
            folder = os.path.relpath(run.path, above) if run.path.is_absolute() else str(run.path)
            body.append([row.label, run.seed, status, score, machine, folder])
    columns = ("method", "seed", "status", f"last {comparison.measure}", "machine", "directory")
    return Table("runs", "Runs", columns, body)


def _improvement(comparison: Comparison, row: Group, other: Group) -> Cell:
    return None if row is other else comparison.improvement(row, other)


def _delta_m(comparison: Comparison, row: Group) -> Cell:
    single = np.array([comparison.single_task[task] for task in comparison.tasks])
    scored = single > 0.0
    if not scored.any():
        return None

    def drop(scores: Floats) -> Any:
        return stats.delta_m(scores[..., scored].mean(axis=-2), single[scored])

    return stats.bootstrap(drop, comparison.final(row))


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


def _benchmark(comparison: Comparison) -> str | None:
    """Return MT10 or MT50 if the runs are of these tasks."""
    config = comparison.runs[0].config
    name = "".join(config["tasks"]).upper() if len(config["tasks"]) == 1 else ""
    return name if config.get("suite") == "metaworld" and name in ("MT10", "MT50") else None


def _published(comparison: Comparison) -> list[tuple[Published, str]]:
    """Return the published numbers of the runs' benchmark with their success; none for other tasks."""
    benchmark = _benchmark(comparison)
    if benchmark is None or comparison.measure != "success":
        return []
    found = [(row, row.mt10 if benchmark == "MT10" else row.mt50) for row in PUBLISHED]
    return [(row, success) for row, success in found if success]
