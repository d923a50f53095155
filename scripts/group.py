"""Print which tasks to train together, from a run that has collected affinities; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl_grouping.command"))
