"""Measure the combiners, the environments, an update, a training; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl_benchmarks.command"))
