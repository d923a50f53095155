"""Measure the combiners, the environments, an update, a training; see --help."""

from mtrl.cli.commands import main_benchmark

if __name__ == "__main__":  # environment workers import this file
    raise SystemExit(main_benchmark())
