"""What `mtrl-report` does once its flags are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtrl.errors import UserError
from mtrl.runs.report import compare, write_report
from mtrl.runs.report.comparison import Measure


def report(
    runs: Sequence[Path],
    out: Path,
    *,
    single_task: Sequence[Path] = (),
    measure: Measure | None = None,
    command: Sequence[str] = (),
) -> int:
    """Write the report on `runs` into `out`, print its first two tables and return the exit code 0.

    Raises:
        UserError: no run, runs that cannot share a table, or a folder that cannot be written.
    """
    if not runs:
        raise UserError("no runs: give run directories or folders of them, for instance runs/mt10.")
    comparison = compare(runs, single_task=single_task, measure=measure)
    try:
        result = write_report(comparison, out, command=command)
    except OSError as error:
        raise UserError(f"cannot write to '{out}': {error.strerror}. Choose another --out.") from error
    print("\n".join(table.markdown() for table in result.tables[:2]), end="")
    print(f"\n{result.files[0]} and {len(result.files) - 1} files beside it")
    if not result.has_figures:
        print("Without figures: they need matplotlib, pip install 'mtrl-torch[report]'.")
    return 0
