"""Writes a report's files: page, tables, figures, configurations. Figures are left out without matplotlib."""

from __future__ import annotations

import base64
import importlib.util
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mtrl.config.files import paths_in, write_file
from mtrl.config.labels import tasks_label
from mtrl.config.presets import flat
from mtrl.errors import UserError
from mtrl.report.comparison import Comparison, Group, protocol
from mtrl.report.load import Run
from mtrl.report.table import DASH, Table, plain
from mtrl.report.tables import all_tables
from mtrl.runs.directory import THEN

if TYPE_CHECKING:
    from mtrl.report.drawing import Look

PAGE_NAME = "report.html"
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_PHONE_INCHES = 7.5


class Report(NamedTuple):
    """What was written."""

    tables: list[Table]
    files: list[Path]  # the page first
    has_figures: bool  # False: matplotlib is not installed
    crowded: tuple[str, ...] = ()  # figures whose text does not fit the size that was asked for


class _Picture(NamedTuple):
    """A figure as the page holds it."""

    name: str
    title: str
    caption: str
    source: str  # data URI
    is_wide: bool  # scrolled on a phone instead of shrunk


def write_report(
    comparison: Comparison, out: Path, *, command: Sequence[str] = (), look: Look | None = None
) -> Report:
    """Write the report into the folder `out`, made if missing; files of the same names are replaced.

    `report.html`; `tables/*.csv, .md, .tex`; with matplotlib `figures/*.png, .svg, .pdf`; `configs/*.yaml`,
    with which the commands on the page repeat each run. A file that is a symbolic link is replaced, not
    followed.

    Args:
        comparison: the runs (`compare`).
        out: the folder.
        command: arguments of the command that makes this report, shown on the page.
        look: size and font of the figures.

    Raises:
        OSError: `out` cannot be written.
        UserError: a font that is not installed; a folder in `out`, or a file in `configs`, that is a link
            out of `out`.
    """
    tables = all_tables(comparison)
    names = ("tables", "figures", "configs")
    to_tables, to_figures, to_configurations = (_folder_in(out, name) for name in names)
    files = _write_tables(tables, to_tables)
    has_figures = importlib.util.find_spec("matplotlib") is not None
    pictures, drawn, crowded = _write_figures(comparison, to_figures, look) if has_figures else ([], [], [])
    commands, configurations = _write_configurations(comparison, to_configurations)
    page = out / PAGE_NAME
    write_file(page, _page(comparison, tables, pictures, commands, command).encode())
    return Report(tables, [page, *files, *drawn, *configurations], has_figures, tuple(crowded))


def _folder_in(out: Path, name: str) -> Path:
    """Return a folder in `out`; raises UserError if a link in a folder from elsewhere leads out of it."""
    folder = out / name
    if not folder.resolve().is_relative_to(out.resolve()):
        raise UserError(f"'{folder}' is a link to '{folder.resolve()}', outside of '{out}': remove it.")
    return folder


def _write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for table in tables:
        for suffix, text in (("csv", table.csv()), ("md", table.markdown()), ("tex", table.latex())):
            written.append(folder / f"{table.name}.{suffix}")
            write_file(written[-1], text.encode())
    return written


def _write_figures(
    comparison: Comparison, folder: Path, look: Look | None
) -> tuple[list[_Picture], list[Path], list[str]]:
    """Write the figures; return them for the page, their files, and the names of those that are crowded."""
    from mtrl.report.drawing import Look, save, style
    from mtrl.report.figures import score_figures
    from mtrl.report.fit import fitted
    from mtrl.report.gradient_figures import gradient_figures

    folder.mkdir(parents=True, exist_ok=True)
    look = look or Look()
    pictures, written, crowded = [], [], []
    with style(look):
        for build in (*score_figures(comparison), *gradient_figures(comparison)):
            done = fitted(build, look, len(comparison.groups), len(comparison.tasks))
            if done is None:
                continue
            figure = done.figure
            files = save(figure, folder)
            (svg,) = (path for path in files if path.suffix == ".svg")
            source = "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()
            is_wide = float(figure.drawing.get_figwidth()) > _PHONE_INCHES
            pictures.append(_Picture(figure.name, figure.title, figure.caption, source, is_wide))
            written += files
            crowded += [] if done.fits else [figure.name]
    return pictures, written, crowded


def _write_configurations(comparison: Comparison, folder: Path) -> tuple[list[str], list[Path]]:
    """Write each row's configuration as a preset; return the commands that repeat the runs, and the files."""
    folder.mkdir(parents=True, exist_ok=True)
    commands: list[str] = []
    paths = paths_in(folder, [row.label for row in comparison.groups], ".yaml")
    for row in comparison.groups:
        path = paths[row.label]
        text = yaml.dump(dict(row.runs[0].config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        write_file(path, text.encode())
        preset = shlex.quote(f"{folder.name}/{path.name}")
        commands += [f"mtrl-train --preset {preset} --seed {run.seed}" for run in row.runs]
    return commands, list(paths.values())


def _page(
    comparison: Comparison,
    tables: Sequence[Table],
    pictures: Sequence[_Picture],
    commands: Sequence[str],
    command: Sequence[str],
) -> str:
    evaluated = next(run for run in comparison.runs if run.evaluations)  # it knows the tasks of a benchmark
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
        tables={table.name: (table, table.texts(), table.numeric) for table in tables},
        pictures={picture.name: picture for picture in pictures},
        shared=_shared(comparison.groups),
        versions=_versions(comparison.runs),
        commands=commands,
        command=plain(shlex.join(("mtrl-report", *map(_relative, command)))),
    )


def _title(comparison: Comparison) -> str:
    asked = comparison.runs[0].config["tasks"]
    tasks = plain(tasks_label(asked))
    rows = comparison.groups
    methods = {row.method for row in rows}
    if len(rows) == 1:
        return f"{rows[0].label} on {tasks}"
    if len(methods) == 1:  # the rows' labels then leave the method out
        return f"{plain(rows[0].method)} with {len(rows)} settings on {tasks}"
    return (
        f"{len(methods)} methods{f' in {len(rows)} settings' if len(rows) > len(methods) else ''} on {tasks}"
    )


def _summary(comparison: Comparison) -> list[str]:
    """Return sentences about the runs on the page; the first one counts them."""
    runs, rows = comparison.runs, comparison.groups
    unfinished = sum(not run.finished for run in runs)
    counts = f"{len(runs)} run{'s' * (len(runs) > 1)} of {len(rows)} configuration{'s' * (len(rows) > 1)}"
    sentences = [f"{counts}, {runs[0].steps:,} vector steps each."]
    if unfinished:
        sentences.append(f"{unfinished} unfinished: drawn as thin lines, in no table of scores.")
    anew = sum((run.config.get("env") or {}).get("resume") == "restart" for run in runs)
    if anew:
        sentences.append(f"{anew} with env.resume=restart: such a run begins new episodes when resumed.")
    lost = sum(bool(run.last_metrics.get("env/restarts")) for run in runs)
    if lost:
        sentences.append(f"{lost} lost episodes with a worker that was restarted.")
    commits = {run.versions.get("git_commit") for run in runs}
    if len(commits) > 1 or any(THEN in str(commit) for commit in commits):
        sentences.append("The commit differs between or within runs: see Versions and machines.")
    if min(len(row.finished) for row in rows) < 5:
        sentences.append("Bootstrap intervals of rows with fewer than five finished seeds are too narrow.")
    return sentences


def _shared(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return the settings that all runs have in common."""
    first, *rest = (flat(run.config) for row in groups for run in row.runs)
    common = dict(first)
    for other in rest:
        common = {key: value for key, value in common.items() if key in other and other[key] == value}
    return [(key, _text(value)) for key, value in common.items()]


def _versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return each version with all the values that the runs have."""
    keys = dict.fromkeys(key for run in runs for key in run.versions)
    return [
        (plain(key), plain(", ".join(dict.fromkeys(run.versions.get(key, DASH) for run in runs))))
        for key in keys
    ]


def _text(value: Any) -> str:
    return plain(", ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def _relative(argument: str) -> str:
    """Return an absolute path as seen from the working directory, for a page that others read."""
    return os.path.relpath(argument) if os.path.isabs(argument) else argument
