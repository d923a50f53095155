"""Pictures of the gallery's trajectories; matplotlib and Pillow are imported only here, and only on use."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from mtrl.config.files import file_name
from mtrl_gallery.descent import LANDSCAPES, OPTIMUM, PARETO_Y, Run, toy_losses

_COLUMNS = 4  # of the contact sheet
_TILE = 300, 158  # pixels of a method's picture in it
_LABEL = 16
_COLOURS = ("tab:red", "tab:orange", "tab:green", "tab:blue", "tab:purple", "tab:brown")


def draw(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write METHOD.png for each run and contact-sheet.png of all in the folder; returns their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for run in runs:
        figure, panels = plt.subplots(1, len(run.paths), figsize=(4.2 * len(run.paths), 4.3), squeeze=False)
        for panel, name in zip(panels[0], run.paths, strict=True):
            _panel(panel, run, name)
            panel.set_title(LANDSCAPES[name].title, fontsize=9)
        figure.suptitle(f"{run.method}: {run.steps} steps, learning rate {run.lr:g}", fontsize=10)
        figure.tight_layout()
        path = folder / f"{file_name(run.method)}.png"
        figure.savefig(path, dpi=75)
        plt.close(figure)
        with Image.open(path) as picture:
            written.append(_saved(picture.convert("RGB"), path))
    return [*written, _contact_sheet(folder)]


def _contact_sheet(folder: Path) -> Path:
    sheet_path = folder / "contact-sheet.png"
    pictures = sorted(path for path in folder.glob("*.png") if path != sheet_path)
    width, height = _TILE[0], _TILE[1] + _LABEL
    rows = math.ceil(len(pictures) / _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, path in enumerate(pictures):
        corner = (index % _COLUMNS * width, index // _COLUMNS * height)
        pen.text((corner[0] + width // 2, corner[1] + _LABEL // 2), path.stem, fill="black", anchor="mm")
        with Image.open(path) as picture:
            # Without the titles at the top, which would be too small to read.
            top = round(0.1 * picture.height)
            bare = picture.convert("RGB").crop((0, top, picture.width, picture.height))
            sheet.paste(bare.resize(_TILE, Image.Resampling.LANCZOS), (corner[0], corner[1] + _LABEL))
    return _saved(sheet, sheet_path)


def _panel(panel: Any, run: Run, name: str) -> None:
    """Draw one method's trajectories over the mean loss: starts are dots, ends crosses."""
    axis = torch.linspace(-10.0, 10.0, 121, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    factors = torch.tensor(LANDSCAPES[name].factors, dtype=torch.float64)
    means = toy_losses(points, factors).mean(0)
    lines = {"colors": "0.7", "linewidths": 0.5, "linestyles": "solid"}
    panel.contour(axis, axis, means, levels=24, **lines)
    panel.plot([-7.0, 7.0], [PARETO_Y, PARETO_Y], color="0.6", linewidth=4.0, zorder=1)
    if name == "cagrad":
        panel.plot(*OPTIMUM, "*", color="gold", markersize=14, zorder=2)
    for colour, path in zip(_COLOURS, run.paths[name].values(), strict=False):
        panel.plot(*path.T, color=colour, linewidth=1.6)
        panel.plot(*path[0], "o", color=colour, markersize=5)
        panel.plot(*path[-1], "x", color="black", markersize=7, zorder=3)
    ticks = [-10, -5, 0, 5, 10]
    panel.set(xlim=(-10.6, 10.6), ylim=(-10.6, 10.6), xticks=ticks, yticks=ticks)


def _saved(picture: Image.Image, path: Path) -> Path:
    # A palette makes the file a third as large.
    picture.quantize(128, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)
    return path
