"""Train on any tasks: --tasks reach-v3 push-v3, or a preset that names them; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl.cli.train"))
