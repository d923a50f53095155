"""Train on MT10 with the protocol of configs/mt10.yaml; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl.cli.train", preset="mt10", tasks=("MT10",)))
