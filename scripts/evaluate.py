"""Evaluate the newest checkpoint of a run; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl.cli.evaluate"))
