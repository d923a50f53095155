"""Train SAC of Stable-Baselines3 on one task; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl_single_task.command"))
