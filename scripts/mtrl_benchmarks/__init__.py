"""Benchmarks behind `scripts/benchmark.py`: one module per subcommand, found by its presence in this folder.

A module that does not start with an underscore, but for `command` and `report`, is a subcommand of its name.
The first line of its docstring is the subcommand's help. It offers two functions:

    add_arguments(parser: argparse.ArgumentParser) -> None    its own flags; `--json` is there already
    run(arguments: argparse.Namespace) -> list[Row]           measures; flat rows, keys as in `ROW_KEYS`

and two constants: `ROW_KEYS: tuple[str, ...]`, the columns in order, and, where there are some,
`PACKAGES: tuple[str, ...]`, distributions whose versions belong to its numbers besides those of every run.
What is imported when the module is (for `--help`) must be light: torch, gymnasium and mujoco are imported
inside functions or in modules with a leading underscore. A mistake of the user is a `UserError`; lines about
progress or about something left out go through `report.note`, so that the tables on standard output stay
clean.
"""
