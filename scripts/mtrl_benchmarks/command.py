"""The command line of the benchmarks: one subcommand per module, see the package docstring."""

import argparse
import ast
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from mtrl.cli import command
from mtrl.cli.named_files import check_writable
from mtrl.errors import UserError, did_you_mean, unknown_name
from mtrl_benchmarks import report

_NOT_BENCHMARKS = {"command", "report"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help.")


def subcommands() -> dict[str, Path]:
    """Return the benchmarks by name: the public modules of this folder."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {file.stem: file for file in files if file.stem not in _NOT_BENCHMARKS}


def run(argv: list[str]) -> int:
    """Run the benchmark that `argv` names, print its table and write its `--json`; returns 0.

    Raises:
        UserError: unknown subcommand or flag, or a value outside its rule.
    """
    if not argv or argv[0] in ("-h", "--help"):
        _overview().print_help()
        return 0 if argv else 2
    if argv[0] not in subcommands():
        raise UserError(unknown_name("benchmark", argv[0], subcommands()))
    module = importlib.import_module(f"mtrl_benchmarks.{argv[0]}")
    arguments = _parse(module, argv)
    if arguments is None:
        return 0
    for path in (arguments.json, getattr(arguments, "profile", None)):
        if path is not None:
            check_writable(path)  # before the minutes of measuring
    packages: tuple[str, ...] = getattr(module, "PACKAGES", ())
    rows: list[report.Row] = module.run(arguments)
    print(report.table(rows))
    if arguments.json is not None:
        report.write_json(arguments.json, rows, packages)
    return 0


main = command(run)


def _overview() -> argparse.ArgumentParser:
    lines = [f"  {name:<11}{_summary(file)}" for name, file in subcommands().items()]
    return _Parser(
        prog="benchmark.py",
        usage="benchmark.py {" + ",".join(subcommands()) + "} [--json FILE] [flags of the benchmark]",
        description="Measure a part of mtrl, next to other implementations of it.",
        epilog="\n".join(["benchmarks; each has its own --help:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _parse(module: ModuleType, argv: Sequence[str]) -> argparse.Namespace | None:
    """Return the parsed flags, None after help was printed."""
    description = (module.__doc__ or "").strip()
    parser = _Parser(
        prog=f"benchmark.py {argv[0]}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write machine, versions, rows here")
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        return None
    arguments, unknown = parser.parse_known_args(argv[1:])
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        hint = did_you_mean(unknown[0], flags, cutoff=0.6)
        raise UserError(f"unknown flag '{unknown[0]}'.{hint} {parser.prog} --help lists all flags.")
    return arguments


def _summary(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]
