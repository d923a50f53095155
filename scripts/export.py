"""The policy of a run as files to take away; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl.cli.export"))
