"""Train on MT10 with the protocol of configs/mt10.yaml; see --help."""

from mtrl.cli.commands import main_train

if __name__ == "__main__":  # environment workers import this file
    raise SystemExit(main_train(preset="mt10", tasks=("MT10",)))
