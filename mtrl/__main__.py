"""The console commands; `python -m mtrl train ...` and the like run them by their short names."""

from __future__ import annotations

import sys

from mtrl.cli import launch
from mtrl.errors import unknown_name

_COMMANDS = ("train", "evaluate", "report", "export", "sweep")


def train() -> int:
    """Entry point of mtrl-train."""
    return launch("mtrl.cli.train")


def evaluate() -> int:
    """Entry point of mtrl-evaluate."""
    return launch("mtrl.cli.evaluate")


def report() -> int:
    """Entry point of mtrl-report."""
    return launch("mtrl.cli.report")


def export() -> int:
    """Entry point of mtrl-export."""
    return launch("mtrl.cli.export")


def sweep() -> int:
    """Entry point of mtrl-sweep."""
    return launch("mtrl.cli.sweep")


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in _COMMANDS:
        sys.argv[0] = f"mtrl {name}"
        return launch(f"mtrl.cli.{name}", arguments[1:])
    if name == "--version":
        return launch("mtrl.cli.train", arguments)
    if name in ("", "-h", "--help"):
        print(f"usage: python -m mtrl {{{','.join(_COMMANDS)}}} ...; each has its own --help")
        return 0 if name else 2
    print(f"error: {unknown_name('command', name, _COMMANDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":  # environment workers import this file
    raise SystemExit(_run(sys.argv[1:]))
