"""Pictures of the gallery's trajectories; matplotlib is imported only here, and only on use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mtrl_gallery.descent import LANDSCAPES, OPTIMUM, PARETO_Y, Run, toy_losses

_COLUMNS = 8  # of the contact sheet, two per method
_COLOURS = ("tab:red", "tab:orange", "tab:green", "tab:blue", "tab:purple", "tab:brown")


def draw(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write METHOD.png for each run and contact-sheet.png into the folder; returns their paths."""
    plt = _pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for run in runs:
        figure, panels = plt.subplots(1, len(run.paths), figsize=(4.2 * len(run.paths), 4.3), squeeze=False)
        for panel, name in zip(panels[0], run.paths, strict=True):
            _panel(panel, run, name)
            panel.set_title(LANDSCAPES[name].title, fontsize=9)
        figure.suptitle(f"{run.method}: {run.steps} steps of Adam, learning rate {run.lr:g}", fontsize=10)
        written.append(_save(figure, folder / f"{run.method}.png", dpi=75))
    panels_needed = [(run, name) for run in runs for name in run.paths]
    rows = math.ceil(len(panels_needed) / _COLUMNS)
    figure, grid = plt.subplots(rows, _COLUMNS, figsize=(1.55 * _COLUMNS, 1.75 * rows), squeeze=False)
    for panel in grid.flat:
        panel.set_axis_off()
    for panel, (run, name) in zip(grid.flat, panels_needed, strict=False):
        panel.set_axis_on()
        _panel(panel, run, name, small=True)
        panel.set_title(f"{run.method}, {name}", fontsize=7, pad=2)
    written.append(_save(figure, folder / "contact-sheet.png", dpi=80))
    return written


def _panel(panel: Any, run: Run, name: str, *, small: bool = False) -> None:
    """Draw one method's trajectories over the mean loss: starts are dots, ends crosses."""
    axis = torch.linspace(-10.0, 10.0, 121, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    factors = torch.tensor(LANDSCAPES[name].factors, dtype=torch.float64)
    means = toy_losses(points, factors).mean(0)
    lines = {"colors": "0.7", "linewidths": 0.5, "linestyles": "solid"}
    panel.contour(axis, axis, means, levels=10 if small else 24, **lines)
    panel.plot([-7.0, 7.0], [PARETO_Y, PARETO_Y], color="0.6", linewidth=2.0 if small else 4.0, zorder=1)
    if name == "cagrad":
        panel.plot(*OPTIMUM, "*", color="gold", markersize=6 if small else 14, zorder=2)
    for colour, path in zip(_COLOURS, run.paths[name].values(), strict=False):
        panel.plot(*path.T, color=colour, linewidth=0.8 if small else 1.6)
        panel.plot(*path[0], "o", color=colour, markersize=2 if small else 5)
        panel.plot(*path[-1], "x", color="black", markersize=3 if small else 7, zorder=3)
    panel.set(xlim=(-10.6, 10.6), ylim=(-10.6, 10.6), xticks=[], yticks=[])
    if not small:
        panel.set(xticks=[-10, -5, 0, 5, 10], yticks=[-10, -5, 0, 5, 10])


def _save(figure: Any, path: Path, dpi: int) -> Path:
    from PIL import Image

    figure.tight_layout()
    figure.savefig(path, dpi=dpi)
    _pyplot().close(figure)
    # A palette makes the file a third as large.
    palette = Image.Quantize.FASTOCTREE
    Image.open(path).convert("RGB").quantize(128, method=palette).save(path, optimize=True)
    return path


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
