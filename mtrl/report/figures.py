"""Figures of scores."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mtrl.report import drawing as draw
from mtrl.report import signals, stats
from mtrl.report.comparison import Comparison, Curves, Floats, Group, curves
from mtrl.report.drawing import Figure, Room
from mtrl.report.table import number
from mtrl.report.tables import MOST_ROWS, only_best
from mtrl.runs.log import STEP_LABEL

_OVERLAID = 3  # rows whose bands can be told apart in one panel; more rows have a panel each
_SMALLEST_NUMBER = 4.0  # points; the cells of a matrix have no numbers if these would be smaller
_UNFINISHED = {"linewidth": 0.8, "marker": ".", "markersize": 3}
_OTHERS = {"color": "#C4C8CC", "linewidth": 0.8, "zorder": 1}
Build = Callable[[Room], Figure | None]  # draws a figure into a room; None: the runs lack its numbers
_DrawRow = Callable[[Any, Group, dict[str, Any], bool], None]  # axes, row, style, with its band


def score_figures(comparison: Comparison) -> Iterator[Build]:
    """Yield the figures that these runs fill, most important first."""
    rows = comparison.rows
    yield partial(_mean_curves, comparison)
    if len(comparison.tasks) > 1:
        yield partial(_task_curves, comparison)
    if any(len(row.finished) > 1 for row in rows):
        yield partial(_final, comparison)
        if comparison.measure == "success":
            yield partial(_profile, comparison)
    if len(rows) > 1:
        yield partial(_improvement, comparison)
        if any(np.isfinite(signals.update_milliseconds(comparison, row)).any() for row in rows):
            yield partial(_update_time, comparison)


def shown(comparison: Comparison, most: int) -> tuple[Group, ...]:
    """Return the groups that figures show: all, or of very many the best, and then unfinished ones."""
    if len(comparison.groups) <= most:
        return comparison.groups
    best = comparison.best(most)
    unfinished = [row for row in comparison.groups if not row.finished and _has_curve(row)]
    kept = {*best, *unfinished[: most - len(best)]}
    return tuple(row for row in comparison.groups if row in kept)


def styles(comparison: Comparison) -> dict[Group, dict[str, Any]]:
    """Return the line style of each group that is shown, the same in all figures."""
    return {row: draw.line_style(index) for index, row in enumerate(shown(comparison, MOST_ROWS))}


def only_first(tasks: Sequence[str], comparison: Comparison) -> str:
    """Return the sentence that tells that not all tasks are shown; empty if all are."""
    total = len(comparison.tasks)
    return f" Shown: the first {len(tasks)} of {total} tasks." if len(tasks) < total else ""


def _overlay(
    comparison: Comparison, room: Room, rows: Sequence[Group], draw_row: _DrawRow
) -> tuple[Any, list[Any]]:
    """Draw few rows in one panel, and more in a panel each, with the lines of the others in grey."""
    looks = styles(comparison)
    if len(rows) <= _OVERLAID:
        drawing, grid = draw.panels(room, 1, 6.6, 3.9)
        for row in rows:
            draw_row(grid[0], row, looks[row], True)
        handles = [grid[0].plot([], [], linewidth=2, **looks[row])[0] for row in rows]
        draw.legend(room, drawing, handles, [row.label for row in rows])
        return drawing, grid
    titles = [row.label for row in rows]
    drawing, grid = draw.panels(room, len(rows), 2.3, 1.6, 4, titles, sharex=True, sharey=True)
    for axes, own in zip(grid, rows, strict=True):
        for row in rows:
            if row is not own:
                draw_row(axes, row, _OTHERS, False)
        draw_row(axes, own, {**looks[own], "linestyle": "-", "zorder": 3}, True)
    return drawing, grid


def _band(
    axes: Any, x: Floats, found: tuple[Floats, Floats, Floats], style: dict[str, Any], **line: Any
) -> None:
    center, low, high = found
    axes.plot(x, center, **({"linewidth": 1.8} | style | line))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _mean_curves(comparison: Comparison, room: Room) -> Figure:
    def draw_row(axes: Any, row: Group, style: dict[str, Any], is_own: bool) -> None:
        if row.finished:
            own = comparison.curves(row)
            if is_own:
                band = comparison.once(("band", row), lambda: stats.band(own.scores.mean(axis=2)))
                _band(axes, own.steps, band, style, marker="o", markersize=2.5)
            else:
                axes.plot(own.steps, own.scores.mean(axis=(0, 2)), **style)
        for found in _unfinished(comparison, row) if is_own else ():
            axes.plot(found.steps, found.scores[0].mean(axis=1), **style | _UNFINISHED)

    rows = _with_curves(comparison, room)
    drawing, grid = _overlay(comparison, room, rows, draw_row)
    first, *others = comparison.tasks
    over = f"mean {comparison.measure} over {len(comparison.tasks)} tasks"
    for axes in grid:
        _score_axis(axes, comparison)
    draw.name_axes(drawing, grid, STEP_LABEL, over if others else f"{comparison.measure} on {first}")
    caption = (
        f"Mean {comparison.measure} over tasks and seeds at each evaluation; band: 95 % bootstrap over seeds."
        f"{' Grey: the other rows.' if len(grid) > 1 else ''}{_only_shown(rows, comparison)}"
    )
    caption += _thin_lines(comparison, rows)
    return Figure("curves", f"{comparison.measure.capitalize()} over training", caption, drawing)


def _task_curves(comparison: Comparison, room: Room) -> Figure:
    rows = _with_curves(comparison, room)
    share = comparison.measure == "success"
    tasks = draw.short_names(comparison.tasks)[: room.tasks]
    drawing, grid = draw.panels(room, len(tasks), 2.3, 1.6, 5, tasks, sharex=True, sharey=share)
    looks = styles(comparison)
    for row in rows:
        if row.finished:
            found = comparison.curves(row)
            center, low, high = stats.band(found.scores)  # [K, T]
            for index, axes in enumerate(grid):
                if len(rows) <= _OVERLAID:
                    _band(axes, found.steps, (center[:, index], low[:, index], high[:, index]), looks[row])
                else:
                    axes.plot(found.steps, center[:, index], linewidth=1.3, **looks[row])
        for found in _unfinished(comparison, row):
            for index, axes in enumerate(grid):
                axes.plot(found.steps, found.scores[0, :, index], **looks[row] | _UNFINISHED)
    for axes in grid:
        _score_axis(axes, comparison)
    handles = [grid[0].plot([], [], linewidth=2, **looks[row])[0] for row in rows]
    draw.legend(room, drawing, handles, [row.label for row in rows], "upper")
    draw.name_axes(drawing, grid, STEP_LABEL, comparison.measure)
    bands = "bands as above." if len(rows) <= _OVERLAID else "means over seeds."
    caption = f"Each task on its own; {bands}{_only_shown(rows, comparison)}{only_first(tasks, comparison)}"
    caption += _thin_lines(comparison, rows)
    return Figure("curves-per-task", f"{comparison.measure.capitalize()} of each task", caption, drawing)


def _with_curves(comparison: Comparison, room: Room) -> list[Group]:
    return [row for row in shown(comparison, room.rows) if _has_curve(row)]


def _has_curve(row: Group) -> bool:
    return any(run.evaluations for run in row.runs)


def _unfinished(comparison: Comparison, row: Group) -> Iterator[Curves]:
    for run in row.runs:
        if not run.finished and run.evaluations:
            yield curves([run], comparison.tasks, comparison.measure)


def _thin_lines(comparison: Comparison, rows: Sequence[Group]) -> str:
    if all(run.finished for run in comparison.runs):
        return ""
    left_out = sum(not row.finished and _has_curve(row) and row not in rows for row in comparison.groups)
    more = f" Not shown: {left_out} row{'s' * (left_out > 1)} without a finished run." if left_out else ""
    return f" Thin lines: unfinished runs, which count in no table.{more}"


def _score_axis(axes: Any, comparison: Comparison) -> None:
    if comparison.measure == "success":
        axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=0)


def _only_shown(rows: Sequence[Group], comparison: Comparison) -> str:
    return only_best([row for row in rows if row.finished], comparison)


def _final(comparison: Comparison, room: Room) -> Figure:
    rows = [row for row in shown(comparison, room.rows) if row.finished]
    labels, width, lines = draw.row_names(room, [row.label for row in rows])
    looks = styles(comparison)
    height = max(0.36, 0.2 * lines) * len(rows) + 0.7
    drawing, grid = draw.panels(room, 2, 3.2 + width / 2 / draw.em(), height, sharey=True)
    statistics = ((f"mean {comparison.measure}", comparison.mean), ("interquartile mean", comparison.iqm))
    for axes, (title, statistic) in zip(grid, statistics, strict=True):
        for index, row in enumerate(rows):
            found, colour = statistic(row), looks[row]["color"]
            bar = {"color": colour, "linewidth": 7, "alpha": 0.35, "solid_capstyle": "butt"}
            axes.plot([found.low, found.high], [index, index], **bar)
            axes.plot(found.value, index, "o", color=colour, markersize=6)
        if comparison.measure == "success":  # a rate is in [0, 1]: a small margin around it is enough
            low, high = axes.get_xlim()
            margin = 0.02 * (high - low)
            axes.set_xlim(max(low, -margin), min(high, 1.0 + margin))
        axes.set_xlabel(draw.wrapped(title, 0.4 * drawing.get_figwidth(), "medium"))
        draw.name_rows(axes, labels)
    caption = (
        "Final evaluation with 95 % bootstrap intervals: the mean over whole runs, the interquartile mean "
        "stratified by task. Overlapping intervals do not prove equality; see the probability of improvement."
        f"{_only_shown(rows, comparison)}"
    )
    return Figure("final", "Final scores with intervals", caption, drawing)


def _profile(comparison: Comparison, room: Room) -> Figure:
    thresholds = np.linspace(0.0, 1.0, 101)[:-1]  # no score is above 1

    def draw_row(axes: Any, row: Group, style: dict[str, Any], is_own: bool) -> None:
        above = comparison.once(
            ("profile", row), lambda: stats.performance_profile(comparison.final(row)[:, None], thresholds)
        )  # [R, K]: the share of each run's tasks
        options = {"drawstyle": "steps-post"}
        if is_own:
            _band(axes, thresholds, stats.band(above), style, **options)
        else:
            axes.plot(thresholds, above.mean(axis=0), **style, **options)

    rows = [row for row in shown(comparison, room.rows) if row.finished]
    drawing, grid = _overlay(comparison, room, rows, draw_row)
    for axes in grid:
        axes.set(xlim=(0, 1), ylim=(-0.03, 1.03))
    draw.name_axes(drawing, grid, "success rate", "share of runs and tasks above it")
    caption = (
        "Of all pairs of run and task, the share with a final success above each value: higher is better. "
        f"Band: 95 % bootstrap over seeds.{_only_shown(rows, comparison)}"
    )
    return Figure("profile", "Performance profile", caption, drawing)


def _improvement(comparison: Comparison, room: Room) -> Figure:
    rows = comparison.best(room.rows)
    names = [row.label for row in rows]
    values = np.array([[0.5 if a is b else comparison.improvement(a, b).value for b in rows] for a in rows])
    columns = names
    if max(map(len, names)) > 14:  # long names would take more room than the matrix: number the columns
        columns = [str(index) for index in range(1, len(rows) + 1)]
        names = [f"{label}  [{index}]" for label, index in zip(names, columns, strict=True)]
    labels, label_width, lines = draw.row_names(room, names)
    side = max(2.2, max(0.5, 0.2 * lines) * len(rows))
    drawing, (axes,) = draw.panels(room, 1, side + 2.0 + 1.15 * label_width / draw.em(), side + 0.9)
    reach = max(0.1, np.ceil(10.0 * np.nanmax(np.abs(values - 0.5), initial=0.0)) / 10.0)
    image = draw.heat_map(axes, values, labels, columns, vmin=0.5 - reach, vmax=0.5 + reach, cmap="PuOr")
    width, height = drawing.get_size_inches()
    cell = min(width - 1.15 * label_width - 1.4 * draw.em(), height - 0.9 * draw.em()) / len(rows)
    size = min(8.0 * draw.em(), cell * 72.0 / 3.0)  # points; a cell holds four characters
    for i, j in np.ndindex(*values.shape):
        if i != j and size >= _SMALLEST_NUMBER:
            # Dark and light cells need different text.
            colour = "white" if abs(values[i, j] - 0.5) > 0.6 * reach else "black"
            text = number(float(values[i, j]))
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)
    draw.colour_bar(drawing, image, axes, "chance that the row is better", 0.8)
    axes.set(ylabel="row", xlabel="column")
    caption = "Chance that a run of the row beats a run of the column on a task; the table has intervals."
    return Figure("improvement", "Probability of improvement", caption + only_best(rows, comparison), drawing)


def _update_time(comparison: Comparison, room: Room) -> Figure:
    rows = [row for row in shown(comparison, room.rows) if row.finished]
    labels, width, lines = draw.row_names(room, [row.label for row in rows])
    looks, height = styles(comparison), max(0.36, 0.2 * lines) * len(rows) + 0.6
    drawing, (axes,) = draw.panels(room, 1, 4.6 + width / draw.em(), height)
    for index, row in enumerate(rows):
        times = signals.update_milliseconds(comparison, row)
        times = times[np.isfinite(times)]
        if len(times):
            axes.barh(index, times.mean(), color=looks[row]["color"], alpha=0.6, height=0.6)
            axes.plot(times, [index] * len(times), "|", color="black", markersize=9)
    draw.name_rows(axes, labels)
    axes.set_xlabel("milliseconds per update")
    caption = (
        "Median over training of the time of one update. Bar: mean over runs; strokes: the runs."
        f"{_only_shown(rows, comparison)}"
    )
    return Figure("update-time", "Time per update", caption, drawing)
