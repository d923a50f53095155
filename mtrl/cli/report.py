"""`mtrl-report`: compare runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mtrl.cli import command, importing
from mtrl.cli.flags import parse_command
from mtrl.config.values import settings
from mtrl.errors import UserError


@settings("--")
class _Flags:
    """Compare runs: one HTML page, and its tables (CSV, Markdown, LaTeX) and figures (PNG, SVG) as files."""

    runs: tuple[str, ...] = ()
    """Run directories, or folders of them such as a sweep's; all of one protocol."""
    out: str = "report"
    """Folder for report.html, tables/, figures/ and configs/; made if missing."""
    single_task: tuple[str, ...] = ()
    """Finished runs of one task each, for Delta m: the drop against agents trained on a task alone."""
    measure: Literal["success", "return"] | None = None
    """What to compare; by default success if the suite has it, else the return."""


@command
def main(arguments: list[str]) -> int:
    """Write the report and print its first two tables."""
    flags = parse_command(_Flags, arguments, positional="runs")
    if flags is None:
        return 0
    if not flags.runs:
        raise UserError("no runs: give run directories or folders of them, for instance runs/mt10.")
    with importing():
        from mtrl.report import compare, write_report

    single_task = list(map(Path, flags.single_task))
    comparison = compare(list(map(Path, flags.runs)), single_task=single_task, measure=flags.measure)
    try:
        result = write_report(comparison, Path(flags.out), command=arguments)
    except OSError as error:
        raise UserError(f"cannot write to '{flags.out}': {error.strerror}. Choose another --out.") from error
    print("\n".join(table.markdown() for table in result.tables[:2]), end="")
    print(f"\n{result.files[0]} and {len(result.files) - 1} files beside it")
    if not result.has_figures:
        print("Without figures: they need matplotlib, pip install 'mtrl-torch[report]'.")
    return 0
