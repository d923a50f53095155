"""Writes a report's files: page, tables, figures, configurations. Imports matplotlib only if it is there."""

from __future__ import annotations

import base64
import importlib.util
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mtrl.config.presets import flat
from mtrl.report.comparison import Comparison, Group, protocol
from mtrl.report.load import Run
from mtrl.report.table import MISSING, Table
from mtrl.report.tables import all_tables

PAGE_NAME = "report.html"
_PHONE_INCHES = 7.5


class Report(NamedTuple):
    """What was written."""

    tables: list[Table]
    files: list[Path]  # the page first
    has_figures: bool  # False: matplotlib is not installed


class _Picture(NamedTuple):
    """A figure as the page holds it."""

    name: str
    title: str
    caption: str
    source: str  # data URI
    is_wide: bool  # too wide to be shrunk to a phone's width: scrolled there


def write_report(comparison: Comparison, out: Path, *, command: Sequence[str] = ()) -> Report:
    """Write the report into the folder `out`, made if missing; files of the same names are replaced.

    `report.html`; `tables/*.csv, .md, .tex`; with matplotlib `figures/*.png, .svg`; `configs/*.yaml`, from
    which the commands on the page repeat each run.

    Args:
        comparison: the runs (`compare`).
        out: the folder.
        command: arguments of the command that makes this report, shown on the page.

    Raises:
        OSError: `out` cannot be written.
    """
    tables = all_tables(comparison)
    files = _write_tables(tables, out / "tables")
    has_figures = importlib.util.find_spec("matplotlib") is not None
    pictures, drawn = _write_figures(comparison, out / "figures") if has_figures else ([], [])
    commands, configurations = _write_configurations(comparison, out / "configs")
    page = out / PAGE_NAME
    page.write_text(_page(comparison, tables, pictures, commands, command), encoding="utf-8")
    return Report(tables, [page, *files, *drawn, *configurations], has_figures)


def _write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in tables:
        for suffix, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
            written.append(folder / f"{table.name}.{suffix}")
            written[-1].write_text(text, encoding="utf-8")
    return written


def _write_figures(comparison: Comparison, folder: Path) -> tuple[list[_Picture], list[Path]]:
    from mtrl.report.figures import save, score_figures
    from mtrl.report.gradient_figures import gradient_figures

    folder.mkdir(parents=True, exist_ok=True)
    pictures, written = [], []
    for figure in (*score_figures(comparison), *gradient_figures(comparison)):
        png, svg = folder / f"{figure.name}.png", folder / f"{figure.name}.svg"
        save(figure, png, svg)
        written += [png, svg]
        width = float(figure.drawing.get_figwidth())
        source = "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()
        pictures.append(_Picture(figure.name, figure.title, figure.caption, source, width > _PHONE_INCHES))
    return pictures, written


def _write_configurations(comparison: Comparison, folder: Path) -> tuple[list[str], list[Path]]:
    """Write each row's configuration as a preset; return the commands that repeat the runs, and the files."""
    folder.mkdir(parents=True, exist_ok=True)
    commands, written = [], []
    for row in comparison.groups:
        name = re.sub(r"[^\w.=-]+", "-", row.label).strip("-")
        path = folder / f"{name}.yaml"
        text = yaml.safe_dump(dict(row.runs[0].config), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
        preset = shlex.quote(f"{folder.name}/{path.name}")
        commands += [f"mtrl-train --preset {preset} --seed {run.seed}" for run in row.runs]
    return commands, written


def _page(
    comparison: Comparison,
    tables: Sequence[Table],
    pictures: Sequence[_Picture],
    commands: Sequence[str],
    command: Sequence[str],
) -> str:
    evaluated = next(run for run in comparison.runs if run.evaluations)  # its tasks are spelt out
    environment = Environment(
        loader=PackageLoader("mtrl.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=_title(comparison),
        summary=_summary(comparison),
        protocol=[(key, _text(value)) for key, value in protocol(evaluated).items()],
        tables={table.name: table for table in tables},
        pictures={picture.name: picture for picture in pictures},
        shared=_shared(comparison.groups),
        versions=_versions(comparison.runs),
        commands=commands,
        command=shlex.join(("mtrl-report", *command)),
    )


def _title(comparison: Comparison) -> str:
    asked = comparison.runs[0].config["tasks"]
    tasks = ", ".join(asked) if len(asked) <= 3 else f"{len(asked)} tasks"
    rows = comparison.groups
    methods = rows[0].label if len(rows) == 1 else f"{len(rows)} methods"
    return f"{methods} on {tasks}"


def _summary(comparison: Comparison) -> list[str]:
    """Return sentences about what is on the page, the unfinished first."""
    runs, rows = comparison.runs, comparison.groups
    unfinished = sum(not run.finished for run in runs)
    counts = f"{len(runs)} run{'s' * (len(runs) > 1)} of {len(rows)} configuration{'s' * (len(rows) > 1)}"
    sentences = [f"{counts}, {runs[0].steps:,} vector steps each."]
    if unfinished:
        sentences.append(f"{unfinished} unfinished: drawn thinly, in no table of scores.")
    if min(len(row.finished) for row in rows) < 5:
        sentences.append("With fewer than five finished seeds in a row its intervals are too narrow.")
    return sentences


def _shared(groups: Sequence[Group]) -> list[tuple[str, str]]:
    configurations = [flat(run.config) for row in groups for run in row.runs]
    first, *rest = configurations
    missing = object()
    return [
        (key, _text(value))
        for key, value in first.items()
        if all(other.get(key, missing) == value for other in rest)
    ]


def _versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return each version with all the values that the runs have."""
    keys = dict.fromkeys(key for run in runs for key in run.versions)
    return [
        (key, ", ".join(dict.fromkeys(str(run.versions.get(key, MISSING)) for run in runs))) for key in keys
    ]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
