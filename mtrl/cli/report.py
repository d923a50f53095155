"""`mtrl-report`: compare runs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mtrl.cli import command, importing
from mtrl.cli.flags import parse_command
from mtrl.config.files import expand
from mtrl.config.values import settings
from mtrl.errors import UserError

if TYPE_CHECKING:
    from mtrl.report.drawing import Look


@settings("--")
class _Flags:
    """Compare runs: one HTML page, tables (CSV, Markdown, LaTeX) and figures (PNG, SVG, PDF)."""

    runs: tuple[str, ...] = ()
    """Run directories, or folders of them such as a sweep's; all of one protocol."""
    out: str = "report"
    """Folder for report.html, tables/, figures/ and configs/; made if missing."""
    single_task: tuple[str, ...] = ()
    """Finished runs of one task each, for Delta m: the relative drop in score against them."""
    measure: Literal["success", "return"] | None = None
    """What to compare; by default success if the suite has it, else the return."""
    methods: tuple[str, ...] = ()
    """Methods, or labels of rows, to show in this order; by default all."""
    labels: tuple[str, ...] = ()
    """NAME=TEXT: what a method or a row is called in tables and figures, for instance cagrad=CAGrad."""
    comparisons: Annotated[int, Field(gt=0)] | None = None
    """Number of comparisons in the whole study, if these runs are only a part of it; intervals get wider."""
    size: str | None = None
    """WIDTH or WIDTHxHEIGHT of each figure in inches, for instance 5.5x3; by default what it needs."""
    font: str | None = None
    """Font of the figures: serif, sans-serif, monospace or the name of an installed font."""
    font_size: float | None = None
    """Size of the figures' text in points; 10 by default."""


@command
def main(arguments: list[str]) -> int:
    """Write the report and print its first two tables."""
    flags = parse_command(_Flags, arguments, positional="runs")
    if not flags.runs:
        raise UserError("no runs: give run directories or folders of them, for instance runs/mt10-sweep.")
    with importing():
        from mtrl.report import compare, write_report

    out = expand(flags.out)
    comparison = compare(
        list(map(Path, flags.runs)),
        single_task=list(map(Path, flags.single_task)),
        measure=flags.measure,
        methods=flags.methods,
        labels=_labels(flags.labels),
        comparisons=flags.comparisons,
    )
    look = _look(flags)
    try:
        result = write_report(comparison, out, command=arguments, look=look)
    except OSError as error:
        raise UserError(f"cannot write to '{flags.out}': {error.strerror}. Choose another --out.") from error
    lines = [table.markdown() for table in result.tables[:2]]
    lines.append(f"{result.files[0]} and {len(result.files) - 1} files beside it")
    if not result.has_figures:
        lines.append("Without figures: they need matplotlib, pip install 'mtrl-torch[report]'.")
    if result.crowded:
        names = ", ".join(result.crowded)
        lines.append(f"warning: text does not fit at --size {flags.size}: {names}. Choose a larger size.")
    try:
        print("\n".join(lines), flush=True)
    except OSError as error:  # the report is written; a full disk or a closed pipe only loses its summary
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else the interpreter fails at its end
        if not isinstance(error, BrokenPipeError):
            print(f"warning: {error.strerror}: cannot print. {result.files[0]} is written.", file=sys.stderr)
    return 0


def _labels(pairs: tuple[str, ...]) -> dict[str, str]:
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UserError(f"--labels: expected NAME=TEXT such as cagrad=CAGrad, found '{pair}'.")
    return {name: text for name, _, text in (pair.rpartition("=") for pair in pairs)}


def _look(flags: _Flags) -> Look | None:
    """Return the look that the flags ask for; None where matplotlib, which a Look needs, may be missing."""
    if flags.size is None and flags.font is None and flags.font_size is None:
        return None
    from mtrl.report.drawing import Look

    width = height = None
    if flags.size is not None:
        found = re.fullmatch(r"(\d*\.?\d+)(?:x(\d*\.?\d+))?", flags.size)
        sides = [float(side) for side in found.groups() if side] if found else []
        if not sides or not all(1.0 <= side <= 50.0 for side in sides):
            raise UserError(
                f"--size: expected WIDTH or WIDTHxHEIGHT, 1 to 50 inches each, found '{flags.size}'."
            )
        width, height = (*sides, None)[:2]
    if flags.font_size is not None and not 3.0 <= flags.font_size <= 40.0:
        raise UserError(f"--font-size: expected 3 to 40 points, found {flags.font_size:g}.")
    return Look(width, height, flags.font, flags.font_size)
