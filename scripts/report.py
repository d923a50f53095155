"""Compare runs: one HTML page, tables and figures; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl.cli.report"))
