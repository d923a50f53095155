"""What all benchmarks share: facts about machine and versions, the printed table, the `--json` file."""

import argparse
import contextlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtrl.cli.named_files import naming
from mtrl.runs.versions import versions

Value = str | int | float | bool | None
Row = dict[str, Value]

_OF_THE_MACHINE = ("platform", "cpu", "cores", "cuda", "cuda_device")


def count(text: str) -> int:
    """Return the positive number that a flag was given, as `type` of an argument of argparse."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be positive; found {number}")
    return number


def note(text: str) -> None:
    """Print a line about progress or something left out, on standard error."""
    print(text, file=sys.stderr, flush=True)


def facts(packages: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Return `{"machine": {...}, "versions": {...}}`; installed `packages` are added. Imports torch."""
    known = versions()
    machine = {key: known.pop(key) for key in _OF_THE_MACHINE if key in known}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return {"machine": machine, "versions": known}


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, columns as in the first row; a missing value is a dash."""
    keys = list(rows[0]) if rows else []
    cells = [keys, *([_cell(row.get(key)) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [any(isinstance(row.get(key), (int, float)) for row in rows) for key in keys]
    lines = [_line(row, widths, numeric) for row in cells]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([lines[0], _line(rule, widths, numeric), *lines[1:]])


def write_json(path: Path, rows: Sequence[Row], packages: Sequence[str] = ()) -> None:
    """Write `{"machine": {...}, "versions": {...}, "rows": [{...}]}`; numbers that are not finite are null.

    Raises:
        UserError: the file cannot be written.
    """
    content: dict[str, Any] = {
        **facts(packages),
        "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
    }
    with naming(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Value) -> str:
    match value:
        case None:
            return "-"
        case bool() | int() | str():
            return str(value)
    return f"{value:.4g}"


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "| " + " | ".join(padded) + " |"
