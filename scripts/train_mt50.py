"""Train on MT50 with the protocol of configs/mt50.yaml; see --help."""

from mtrl.cli import launch

if __name__ == "__main__":
    raise SystemExit(launch("mtrl.cli.train", preset="mt50", tasks=("MT50",)))
