"""Figures of scores, and what all figures are drawn with. Only figures import matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.ticker import EngFormatter

from mtrl.report import signals, stats
from mtrl.report.comparison import Comparison, Group, curves
from mtrl.runs.log import STEP_LABEL

# Okabe and Ito's colours, told apart by colour-blind readers; black is kept for a single method's mean.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B", "#B8A800")
_DASHES = ("-", "--", ":", "-.")
_DOTS_PER_INCH = 160
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: small files, searchable
}


class Figure(NamedTuple):
    """A drawing with the name of its files and the words below it."""

    name: str
    title: str
    caption: str
    drawing: MatplotlibFigure


def score_figures(comparison: Comparison) -> Iterator[Figure]:
    """Yield the figures that these runs fill, most important first."""
    rows = comparison.rows
    yield _mean_curves(comparison)
    if len(comparison.tasks) > 1:
        yield _task_curves(comparison)
    if any(len(row.finished) > 1 for row in rows):
        yield _final(comparison)
        if comparison.measure == "success":
            yield _profile(comparison)
    if len(rows) > 1:
        yield _improvement(comparison)
        if any(np.isfinite(_update_times(row)).any() for row in rows):
            yield _update_time(comparison)


def save(figure: Figure, png: Path, svg: Path) -> None:
    """Write a drawing in both formats."""
    with mpl.rc_context(_STYLE):
        # Laying out takes longer than drawing: once is enough for both.
        figure.drawing.draw_without_rendering()
        figure.drawing.set_layout_engine("none")
        figure.drawing.savefig(png, dpi=_DOTS_PER_INCH)
        figure.drawing.savefig(svg)


def panels(count: int, width: float, height: float, widest: int = 5, **options: Any) -> tuple[Any, list[Any]]:
    """Return a drawing of `count` panels, at most `widest` in a row, and their axes; sizes in inches."""
    rows, columns = grid_of(count, widest)
    with mpl.rc_context(_STYLE):
        drawing = MatplotlibFigure(figsize=(width, height), layout="constrained")
        axes = list(drawing.subplots(rows, columns, squeeze=False, **options).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return drawing, axes[:count]


def grid_of(count: int, widest: int) -> tuple[int, int]:
    """Return rows and columns for `count` panels, at most `widest` in a row."""
    columns = min(count, widest)
    return -(-count // columns), columns


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the index-th line of a figure; none is used twice among 36."""
    dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": dashes}


def label_steps(axes: Any, text: str = STEP_LABEL) -> None:
    """Name the axis of vector steps; 50 k instead of 50000."""
    axes.set_xlabel(text)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.get_major_locator().set_params(nbins=5)


def legend(drawing: Any, axes: Any, count: int, place: str = "lower") -> None:
    """Put one legend for all panels under them, or above where the axis is named below ("upper")."""
    handles, labels = axes.get_legend_handles_labels()
    options = {"ncols": min(count, 3), "fontsize": "small", "frameon": False}
    drawing.legend(handles, labels, loc=f"outside {place} center", **options)


def heat_map(axes: Any, values: Any, names: Sequence[str], *, low: float, high: float, colours: str) -> Any:
    """Draw a square matrix whose rows and columns have the same names; return the image."""
    image = axes.imshow(values, vmin=low, vmax=high, cmap=colours)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    return image


def _name_rows(axes: Any, rows: Sequence[Group]) -> None:
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _mean_curves(comparison: Comparison) -> Figure:
    drawing, (axes,) = panels(1, 7, 4.6)
    for index, row in enumerate(comparison.groups):
        _draw_row(axes, comparison, row, index)
    _score_axis(axes, comparison)
    first, *others = comparison.tasks
    over = f"mean {comparison.measure} over {len(comparison.tasks)} tasks"
    axes.set_ylabel(over if others else f"{comparison.measure} on {first}")
    label_steps(axes)
    legend(drawing, axes, len(comparison.groups))
    caption = (
        f"Mean {comparison.measure} over tasks and seeds at each evaluation; band: 95 % bootstrap over seeds."
    )
    if not all(run.finished for run in comparison.runs):
        caption += " Thin lines: runs that are unfinished and counted nowhere else."
    return Figure("curves", f"{comparison.measure.capitalize()} over training", caption, drawing)


def _task_curves(comparison: Comparison) -> Figure:
    rows, columns = grid_of(len(comparison.tasks), 5)
    share = comparison.measure == "success"
    drawing, grid = panels(
        len(comparison.tasks), 2.4 * columns + 0.4, 1.9 * rows + 1.1, columns, sharex=True, sharey=share
    )
    for index, (task, axes) in enumerate(zip(comparison.tasks, grid, strict=True)):
        for number, row in enumerate(comparison.groups):
            _draw_row(axes, comparison, row, number, task=index)
        axes.set_title(task, fontsize="medium")
        _score_axis(axes, comparison)
        label_steps(axes, "")
    drawing.supxlabel(STEP_LABEL, fontsize="medium")
    drawing.supylabel(comparison.measure, fontsize="medium")
    legend(drawing, grid[0], len(comparison.groups), "upper")
    title = f"{comparison.measure.capitalize()} of each task"
    return Figure("curves-per-task", title, "Each task on its own; bands as above.", drawing)


def _draw_row(axes: Any, comparison: Comparison, row: Group, index: int, task: int | None = None) -> None:
    def of_task(scores: Any) -> Any:  # [R, K, T] -> [R, K]
        return scores.mean(axis=2) if task is None else scores[:, :, task]

    style = line_style(index)
    label: str | None = row.label
    if row.finished:
        found = comparison.curves(row)
        center, low, high = stats.band(of_task(found.scores))
        axes.plot(found.steps, center, linewidth=2, label=label, marker="o", markersize=2.5, **style)
        axes.fill_between(found.steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        label = None
    for run in row.runs:
        if not run.finished and run.evaluations:
            found = curves([run], comparison.tasks, comparison.measure)
            style["label"] = f"{label}, unfinished" if label else None
            axes.plot(found.steps, of_task(found.scores)[0], linewidth=0.8, marker=".", markersize=3, **style)
            label = None


def _score_axis(axes: Any, comparison: Comparison) -> None:
    if comparison.measure == "success":
        axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=0)


def _final(comparison: Comparison) -> Figure:
    rows = comparison.rows
    drawing, grid = panels(2, 9, 0.42 * len(rows) + 1.4, sharey=True)
    statistics: tuple[tuple[str, stats.Statistic, stats.Unit], ...] = (
        (f"mean {comparison.measure}", stats.mean, "run"),
        ("interquartile mean", stats.iqm, "task"),
    )
    for axes, (title, statistic, unit) in zip(grid, statistics, strict=True):
        for index, row in enumerate(rows):
            found = stats.bootstrap(statistic, comparison.final(row), unit=unit)
            colour = line_style(comparison.groups.index(row))["color"]
            bar = {"color": colour, "linewidth": 7, "alpha": 0.35, "solid_capstyle": "butt"}
            axes.plot([found.low, found.high], [index, index], **bar)
            axes.plot(found.value, index, "o", color=colour, markersize=6)
        axes.set_title(title, fontsize="medium")
        _name_rows(axes, rows)
    caption = (
        "Final evaluation with 95 % bootstrap intervals: the mean over whole runs, the interquartile mean "
        "stratified by task. Intervals that overlap do not prove equality; see the probability of "
        "improvement."
    )
    return Figure("final", "Final scores with intervals", caption, drawing)


def _profile(comparison: Comparison) -> Figure:
    thresholds = np.linspace(0.0, 1.0, 101)[:-1]  # nothing is above 1
    drawing, (axes,) = panels(1, 6.6, 4.2)
    for row in comparison.rows:
        style = line_style(comparison.groups.index(row))
        shares = stats.performance_profile(comparison.final(row), thresholds)
        axes.step(thresholds, shares, where="post", linewidth=2, label=row.label, **style)
    axes.set(xlabel="success rate", ylabel="share of runs and tasks above it")
    axes.set(xlim=(0, 1), ylim=(-0.03, 1.03))
    legend(drawing, axes, len(comparison.rows))
    caption = (
        "Of all pairs of run and task, the share with a final success above each value: higher is better."
    )
    return Figure("profile", "Performance profile", caption, drawing)


def _improvement(comparison: Comparison) -> Figure:
    rows = comparison.rows
    scores = [comparison.final(row) for row in rows]
    values = np.array([[stats.probability_of_improvement(a, b) for b in scores] for a in scores])
    size = 0.55 * len(rows) + 1.5
    drawing, (axes,) = panels(1, size + 1.4, size)
    image = heat_map(axes, values, [row.label for row in rows], low=0.0, high=1.0, colours="PuOr")
    for i, j in np.ndindex(*values.shape):
        colour = "white" if abs(values[i, j] - 0.5) > 0.3 else "black"  # readable on dark and light cells
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color=colour)
    drawing.colorbar(image, ax=axes, shrink=0.8)
    axes.set_ylabel("better than")
    caption = (
        "Chance that a run of the row beats a run of the column on a task; the table below has intervals."
    )
    return Figure("improvement", "Probability of improvement", caption, drawing)


def _update_times(row: Group) -> Any:
    return np.array([signals.update_milliseconds(run) for run in row.runs])


def _update_time(comparison: Comparison) -> Figure:
    rows = comparison.rows
    drawing, (axes,) = panels(1, 6.6, 0.36 * len(rows) + 1.2)
    for index, row in enumerate(rows):
        times = _update_times(row)
        times = times[np.isfinite(times)]
        colour = line_style(comparison.groups.index(row))["color"]
        if len(times):
            axes.barh(index, times.mean(), color=colour, alpha=0.6, height=0.6)
            axes.plot(times, [index] * len(times), "|", color="black", markersize=9)
    _name_rows(axes, rows)
    axes.set_xlabel("milliseconds per update")
    caption = "Median over training of the time of one update; bar: mean over runs, strokes: the runs."
    return Figure("update-time", "Time per update", caption, drawing)
