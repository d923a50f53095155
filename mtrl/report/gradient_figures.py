"""Figures of logs: training episodes by task; gradients of the tasks, and the weights that they get."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from mtrl.report import signals, stats
from mtrl.report.comparison import Comparison, Group
from mtrl.report.drawing import (
    Figure,
    Room,
    colour_bar,
    em,
    heat_map,
    legend,
    line_style,
    literal,
    name_axes,
    panels,
    short_names,
    text_inches,
    wrapped,
)
from mtrl.report.figures import Build, only_first, shown, styles
from mtrl.report.tables import only_best
from mtrl.report.ticks import number_axis
from mtrl.runs.log import STEP_LABEL

_MOST_PANELS = 12  # rows that a figure with a panel for each row has at most
_POINTS = 60  # points that a line of a figure keeps at most
_WEIGHT = "Weight that each method gives a task's gradient."
_EPISODES = "Episodes of training, with exploration, that ended between two log lines."
_NORM = "Norm of each task's gradient before combining."


def gradient_figures(comparison: Comparison) -> Iterator[Build]:
    """Yield the figures that logged numbers may fill: of training episodes, then for critic and actor."""
    yield partial(_per_task, comparison, "training", comparison.measure, _EPISODES)
    for network in signals.NETWORKS:
        yield partial(_conflict, comparison, network)
        if len(comparison.tasks) > 1:
            yield partial(_cosines, comparison, network)
            yield partial(_per_task, comparison, network, "weight", _WEIGHT)
            yield partial(_per_task, comparison, network, "grad_norm", _NORM)


def _conflict(comparison: Comparison, network: signals.Network, room: Room) -> Figure | None:
    quantities = {"conflict_fraction": "share of pairs in conflict", "cos_mean": "mean cosine"}
    found = {
        row: {name: signals.scalar(comparison, row, network, name) for name in quantities}
        for row in shown(comparison, room.rows)
    }
    found = {row: series for row, series in found.items() if series["conflict_fraction"]}
    if not found:
        return None
    drawing, grid = panels(room, 2, 4.3, 3.0)
    looks = styles(comparison)
    for axes, (name, title) in zip(grid, quantities.items(), strict=True):
        for row, series in found.items():
            one = series[name]
            if one is not None:
                axes.plot(*_thinned(one), linewidth=1.5, **looks[row])
        axes.set_ylabel(wrapped(title, 0.6 * drawing.get_figheight(), "medium"))
    name_axes(drawing, grid, STEP_LABEL)
    handles = [grid[0].plot([], [], linewidth=2, **looks[row])[0] for row in found]
    legend(room, drawing, handles, [row.label for row in found], "upper")
    caption = (
        "Pairs of tasks whose gradients conflict (cosine below 0), and the mean cosine of all pairs."
        f"{only_best(shown(comparison, room.rows), comparison)}"
    )
    return Figure(f"{network}-conflict", f"{network.capitalize()}: conflict between tasks", caption, drawing)


def _cosines(comparison: Comparison, network: signals.Network, room: Room) -> Figure | None:
    rows = _panel_rows(comparison, room)
    known = {row: signals.cosines(comparison, row, network) for row in rows}
    found = {row: matrix for row, matrix in known.items() if matrix is not None}
    if not found:
        return None
    tasks = short_names(comparison.tasks)[: room.tasks]
    side = max(2.2, 0.16 * len(tasks) + 1.0)
    titles = [row.label for row in found]
    names = 0.7 * max(map(text_inches, tasks)) / em()  # inches of their width at 10 points
    around = {"beside": 1.2 + names, "below": 0.7 + 0.7 * names}  # for names and the scale of colours
    drawing, grid = panels(room, len(found), side, side, 4, titles, **around, sharex=True, sharey=True)
    image: Any = None
    for axes, matrix in zip(grid, found.values(), strict=True):
        known_tasks = matrix[: len(tasks), : len(tasks)]
        image = heat_map(
            axes, known_tasks, list(map(literal, tasks)), tasks, vmin=-1.0, vmax=1.0, cmap="RdBu"
        )
        axes.tick_params(labelsize=7 * em())
    colour_bar(drawing, image, grid, "cosine", 0.6)
    caption = (
        "Cosine between the gradients of two tasks, mean over training and seeds: red pairs conflict."
        f"{only_best(rows, comparison)}{only_first(tasks, comparison)}"
    )
    return Figure(f"{network}-cosines", f"{network.capitalize()}: cosines between tasks", caption, drawing)


def _per_task(
    comparison: Comparison, source: signals.Source, quantity: str, caption: str, room: Room
) -> Figure | None:
    rows = _panel_rows(comparison, room)
    known = {row: signals.per_task(comparison, row, source, quantity) for row in rows}
    found = {row: series for row, series in known.items() if series is not None}
    if not found:
        return None
    # Norms are comparable between methods. Weights are not: those of Nash-MTL are no shares and would flatten
    # the others.
    titles = [row.label for row in found]
    width, tasks = 2.3 if len(found) > 2 else 3.2, short_names(comparison.tasks)[: room.tasks]
    drawing, grid = panels(room, len(found), width, 1.7, 4, titles, sharex=True, sharey=quantity != "weight")
    for axes, series in zip(grid, found.values(), strict=True):
        steps, values = _thinned(series)
        for number in range(len(tasks)):
            axes.plot(steps, values[:, number], linewidth=1.2, **line_style(number))
        if quantity == "grad_norm":
            axes.set_yscale("log")
            number_axis(axes.yaxis)
    name = {"grad_norm": "gradient norm", "success": "success rate"}.get(quantity, quantity)
    legend(room, drawing, grid[0].get_lines(), tasks, "upper")
    name_axes(drawing, grid, STEP_LABEL, name)
    title = f"{source.capitalize()}: {name}s of the tasks"
    return Figure(
        f"{source}-{quantity.replace('_', '-')}",
        title,
        f"{caption} Mean over seeds.{only_best(rows, comparison)}{only_first(tasks, comparison)}",
        drawing,
    )


def _panel_rows(comparison: Comparison, room: Room) -> Sequence[Group]:
    return shown(comparison, min(room.rows, _MOST_PANELS))


def _thinned(series: signals.Series) -> tuple[Any, Any]:
    """Return means over at most `_POINTS` blocks of log lines; an incomplete last block is left out."""
    size = -(-len(series.steps) // _POINTS)
    whole = len(series.steps) // size * size
    steps = series.steps[:whole].reshape(-1, size).mean(axis=1)
    values = series.values[:whole].reshape(-1, size, *series.values.shape[1:])
    return steps, stats.mean_of_known(values, axis=1)
