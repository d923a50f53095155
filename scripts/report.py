"""Table and success curves of runs; see --help."""

from mtrl.cli.commands import main_report

if __name__ == "__main__":
    raise SystemExit(main_report())
