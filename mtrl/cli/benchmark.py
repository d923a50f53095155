"""`mtrl-benchmark`: combiners, environments, an update, a training, next to other implementations."""

from __future__ import annotations

from collections.abc import Sequence

from mtrl.cli.exit_codes import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first argument names and return the exit code, see `mtrl.cli.exit_codes`."""
    return run_command(_benchmark, argv)


def _benchmark(arguments: list[str]) -> int:
    from mtrl_benchmarks.command import run

    return run(arguments)
