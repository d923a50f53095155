"""Figures of the tasks' gradients: cosines, conflicts, norms, and the weights that a method gives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mtrl.report import signals
from mtrl.report.comparison import Comparison
from mtrl.report.figures import (
    STEPS,
    Figure,
    heat_map,
    label_steps,
    legend,
    line_style,
    panels,
    subplots,
)

_POINTS = 60  # points that a line of a figure keeps at most


def conflict_figures(comparison: Comparison) -> Iterator[Figure]:
    """Yield, for critic and actor, the figures that what the runs logged fills."""
    for network in signals.NETWORKS:
        conflict = _conflict(comparison, network)
        if conflict is not None:
            yield conflict
        if len(comparison.tasks) < 2:
            continue
        cosines = _cosines(comparison, network)
        if cosines is not None:
            yield cosines
        for quantity, title, caption, log in (
            ("weight", "weights of the tasks", "Weight that each method gives a task's gradient.", False),
            (
                "grad_norm",
                "gradient norms of the tasks",
                "Norm of each task's gradient before combining.",
                True,
            ),
        ):
            figure = _per_task(comparison, network, quantity, log=log)
            if figure is not None:
                words = f"{caption} Mean over seeds."
                yield Figure(
                    f"{network}-{quantity.replace('_', '-')}",
                    f"{network.capitalize()}: {title}",
                    words,
                    figure,
                )


def _conflict(comparison: Comparison, network: signals.Network) -> Figure | None:
    quantities = {"conflict_fraction": "share of pairs in conflict", "cos_mean": "mean cosine"}
    found = [
        (
            index,
            row.label,
            {name: signals.scalar(row.finished or row.runs, network, name) for name in quantities},
        )
        for index, row in enumerate(comparison.groups)
    ]
    if not any(series["conflict_fraction"] for _, _, series in found):
        return None
    figure, grid = subplots(1, 2, 9, 4.0)
    for axes, (name, title) in zip(grid[0], quantities.items(), strict=True):
        for index, label, series in found:
            one = series[name]
            if one is not None:
                steps, values = _thinned(one)
                axes.plot(steps, values, linewidth=1.5, label=label, **line_style(index))
        axes.set_title(title, fontsize="medium")
        label_steps(axes)
    legend(figure, grid[0, 0], len(found))
    caption = "Pairs of tasks whose gradients point apart (cosine below 0), and the mean cosine of all pairs."
    return Figure(f"{network}-conflict", f"{network.capitalize()}: conflict between tasks", caption, figure)


def _cosines(comparison: Comparison, network: signals.Network) -> Figure | None:
    known = [
        (row.label, signals.cosines(row.finished or row.runs, comparison.tasks, network))
        for row in comparison.groups
    ]
    found = [(label, series) for label, series in known if series is not None]
    if not found:
        return None
    tasks = [task.removesuffix("-v3") for task in comparison.tasks]
    rows, columns = panels(len(found), 4)
    side = max(2.2, 0.16 * len(tasks) + 1.0)
    figure, grid = subplots(rows, columns, side * columns + 1.8, side * rows + 1.2, sharex=True, sharey=True)
    image: Any = None
    for index, axes in enumerate(grid.flat):
        if index >= len(found):
            axes.set_visible(False)
            continue
        label, series = found[index]
        matrix = np.nanmean(series.values, axis=0)
        image = heat_map(
            figure, axes, matrix, tasks, tasks, low=-1.0, high=1.0, colours="RdBu", write=False, bar=False
        )
        axes.tick_params(labelsize=7)
        axes.set_title(label, fontsize="small")
    figure.colorbar(image, ax=grid, shrink=0.6, label="cosine")
    caption = "Cosine between the gradients of two tasks, mean over training and seeds: red pairs conflict."
    return Figure(f"{network}-cosines", f"{network.capitalize()}: cosines between tasks", caption, figure)


def _per_task(comparison: Comparison, network: signals.Network, quantity: str, *, log: bool) -> Any:
    known = [
        (row.label, signals.per_task(row.finished or row.runs, comparison.tasks, network, quantity))
        for row in comparison.groups
    ]
    found = [(label, series) for label, series in known if series is not None]
    if not found:
        return None
    rows, columns = panels(len(found), 4)
    # Norms compare between methods. Weights do not: Nash-MTL's are no shares and would flatten the others.
    figure, grid = subplots(rows, columns, max(2.7 * columns, 6.0), 2.2 * rows + 1.6, sharex=True, sharey=log)
    for index, axes in enumerate(grid.flat):
        if index >= len(found):
            axes.set_visible(False)
            continue
        label, series = found[index]
        steps, values = _thinned(series)
        for number, task in enumerate(comparison.tasks):
            axes.plot(steps, values[:, number], linewidth=1.2, label=task, **line_style(number))
        if log:
            axes.set_yscale("log")
        axes.set_title(label, fontsize="small")
        label_steps(axes, "")
    figure.supxlabel(STEPS, fontsize="medium")
    legend(figure, grid[0, 0], len(comparison.tasks), "upper")
    return figure


def _thinned(series: signals.Series) -> tuple[Any, Any]:
    """Return means over blocks of log lines: a line of a figure has room for some points."""
    size = -(-len(series.steps) // _POINTS)
    whole = len(series.steps) // size * size
    steps = series.steps[:whole].reshape(-1, size).mean(axis=1)
    values = series.values[:whole].reshape(-1, size, *series.values.shape[1:])
    return steps, np.nanmean(values, axis=1)
