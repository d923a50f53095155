"""Hyper-parameters by Optuna: CAGrad's c and a learning rate, with unpromising trials stopped early.

Run it with `python examples/optuna_search.py`; it needs the extra [examples]. Each trial is an ordinary run
in runs/optuna-DATE-TIME/, which mtrl-report and mtrl-train --resume take as any other.
"""

import time
from typing import Any

import optuna

from mtrl import Config, train


def main(trials: int = 20, folder: str | None = None, **settings: Any) -> optuna.Study:
    """Search and return the study; `settings` are those of all trials."""
    folder = folder or time.strftime("runs/optuna-%Y%m%d-%H%M%S")

    def objective(trial: optuna.Trial) -> float:
        chosen = {
            "method": "cagrad",
            "method_options": {"c": trial.suggest_float("c", 0.1, 0.9)},
            "sac.actor_lr": trial.suggest_float("actor_lr", 1e-4, 1e-2, log=True),
        }

        def report(event: Any) -> None:
            if event.evaluation is not None:
                trial.report(event.evaluation.score, event.vector_step)
                if trial.should_prune() and not event.final:
                    event.stop()  # the run writes a checkpoint, so that it could be resumed

        config = Config.from_preset("pendulum", {**settings, **chosen})
        result = train(config, run_dir=f"{folder}/{trial.number}", callbacks=[report])
        if result.exit_code:  # Ctrl-C or SIGTERM has stopped the run: end the search as well
            trial.study.stop()
        if result.evaluation is None:
            raise optuna.TrialPruned
        return result.evaluation.score

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=5))
    study.optimize(objective, n_trials=trials)
    return study


if __name__ == "__main__":
    for best in main().best_trials:  # none if the first trial was interrupted
        print(best.value, best.params)
