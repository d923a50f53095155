"""Train on MT50 with the protocol of configs/mt50.yaml; see --help."""

from mtrl.cli.commands import main_train

if __name__ == "__main__":  # environment workers import this file
    raise SystemExit(main_train(preset="mt50", tasks=("MT50",)))
