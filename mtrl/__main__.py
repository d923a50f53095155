"""Entry points of the console commands; `python -m mtrl train ...` runs `mtrl-train`, and so on."""

import sys
from functools import partial

from mtrl.cli import launch
from mtrl.errors import unknown_name

_COMMANDS = ("train", "evaluate", "report", "export", "sweep")

# The installed commands mtrl-train and so on, see pyproject.toml.
train, evaluate, report, export, sweep = (partial(launch, f"mtrl.cli.{name}") for name in _COMMANDS)


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


if __name__ == "__main__":
    raise SystemExit(_run(sys.argv[1:]))
