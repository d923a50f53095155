"""Methods x seeds x settings as ordinary runs, on this machine or on a Ray cluster; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl.cli.sweep"))
