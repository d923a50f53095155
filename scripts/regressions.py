"""Run study B: six regressions of one small network, with every method; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl_regressions.command"))
