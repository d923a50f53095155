"""Evaluate the newest checkpoint of a run; see --help."""

from mtrl.cli.commands import main_evaluate

if __name__ == "__main__":  # environment workers import this file
    raise SystemExit(main_evaluate())
