"""Figures of the tasks' gradients: cosines, conflicts, norms, and the weights that a method gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mtrl.report import signals
from mtrl.report.comparison import Comparison
from mtrl.report.figures import Figure, grid_of, heat_map, label_steps, legend, line_style, panels
from mtrl.runs.log import STEP_LABEL

_POINTS = 60  # points that a line of a figure keeps at most
_WEIGHT = "Weight that each method gives a task's gradient."
_NORM = "Norm of each task's gradient before combining."


def gradient_figures(comparison: Comparison) -> Iterator[Figure]:
    """Yield, for critic and actor, the figures that the logged numbers fill."""
    for network in signals.NETWORKS:
        found = [_conflict(comparison, network)]
        if len(comparison.tasks) > 1:
            found += [
                _cosines(comparison, network),
                _per_task(comparison, network, "weight", "weights", _WEIGHT, log=False),
                _per_task(comparison, network, "grad_norm", "gradient norms", _NORM, log=True),
            ]
        yield from (figure for figure in found if figure is not None)


def _conflict(comparison: Comparison, network: signals.Network) -> Figure | None:
    quantities = {"conflict_fraction": "share of pairs in conflict", "cos_mean": "mean cosine"}
    found = [
        {name: signals.scalar(row.finished or row.runs, network, name) for name in quantities}
        for row in comparison.groups
    ]
    if not any(series["conflict_fraction"] for series in found):
        return None
    drawing, grid = panels(2, 9, 4.0)
    for axes, (name, title) in zip(grid, quantities.items(), strict=True):
        for index, (row, series) in enumerate(zip(comparison.groups, found, strict=True)):
            one = series[name]
            if one is not None:
                axes.plot(*_thinned(one), linewidth=1.5, label=row.label, **line_style(index))
        axes.set_title(title, fontsize="medium")
        label_steps(axes)
    legend(drawing, grid[0], len(found))
    caption = "Pairs of tasks whose gradients point apart (cosine below 0), and the mean cosine of all pairs."
    return Figure(f"{network}-conflict", f"{network.capitalize()}: conflict between tasks", caption, drawing)


def _cosines(comparison: Comparison, network: signals.Network) -> Figure | None:
    known = {
        row.label: signals.cosines(row.finished or row.runs, comparison.tasks, network)
        for row in comparison.groups
    }
    found = {label: series for label, series in known.items() if series is not None}
    if not found:
        return None
    tasks = [task.removesuffix("-v3") for task in comparison.tasks]
    rows, columns = grid_of(len(found), 4)
    side = max(2.2, 0.16 * len(tasks) + 1.0)
    drawing, grid = panels(
        len(found), side * columns + 1.8, side * rows + 1.2, columns, sharex=True, sharey=True
    )
    image: Any = None
    for axes, (label, series) in zip(grid, found.items(), strict=True):
        matrix = np.nanmean(series.values, axis=0)
        image = heat_map(axes, matrix, tasks, low=-1.0, high=1.0, colours="RdBu")
        axes.tick_params(labelsize=7)
        axes.set_title(label, fontsize="small")
    drawing.colorbar(image, ax=grid, shrink=0.6, label="cosine")
    caption = "Cosine between the gradients of two tasks, mean over training and seeds: red pairs conflict."
    return Figure(f"{network}-cosines", f"{network.capitalize()}: cosines between tasks", caption, drawing)


def _per_task(
    comparison: Comparison, network: signals.Network, quantity: str, title: str, caption: str, *, log: bool
) -> Figure | None:
    known = {
        row.label: signals.per_task(row.finished or row.runs, comparison.tasks, network, quantity)
        for row in comparison.groups
    }
    found = {label: series for label, series in known.items() if series is not None}
    if not found:
        return None
    rows, columns = grid_of(len(found), 4)
    # Norms compare between methods. Weights do not: Nash-MTL's are no shares and would flatten the others.
    drawing, grid = panels(
        len(found), max(2.7 * columns, 6.0), 2.2 * rows + 1.6, columns, sharex=True, sharey=log
    )
    for axes, (label, series) in zip(grid, found.items(), strict=True):
        steps, values = _thinned(series)
        for number, task in enumerate(comparison.tasks):
            axes.plot(steps, values[:, number], linewidth=1.2, label=task, **line_style(number))
        if log:
            axes.set_yscale("log")
        axes.set_title(label, fontsize="small")
        label_steps(axes, "")
    drawing.supxlabel(STEP_LABEL, fontsize="medium")
    legend(drawing, grid[0], len(comparison.tasks), "upper")
    name, title = f"{network}-{quantity.replace('_', '-')}", f"{network.capitalize()}: {title} of the tasks"
    return Figure(name, title, f"{caption} Mean over seeds.", drawing)


def _thinned(series: signals.Series) -> tuple[Any, Any]:
    """Return means over blocks of log lines, at most about `_POINTS`."""
    size = -(-len(series.steps) // _POINTS)
    whole = len(series.steps) // size * size
    steps = series.steps[:whole].reshape(-1, size).mean(axis=1)
    values = series.values[:whole].reshape(-1, size, *series.values.shape[1:])
    return steps, np.nanmean(values, axis=1)
