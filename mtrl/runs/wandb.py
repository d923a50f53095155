"""Curves on Weights & Biases, with the configuration of the run. Only this module imports wandb."""

import math
import uuid
from collections.abc import Mapping
from typing import Any

import wandb

from mtrl.config.labels import method_label
from mtrl.runs.log import Evaluation, RunInfo, Stamp

_ID_NAME = "wandb.id"  # in the run directory: a resumed run continues its page


class WeightsAndBiases:
    """A page per run, grouped by method; charts have a line per task, such as `success/reach-v3`.

    The environment variables of wandb (WANDB_PROJECT, WANDB_MODE=offline, ...) apply.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: RunInfo) -> None:
        """Start or continue the page and give it the configuration and versions."""
        path = run.path / _ID_NAME
        if not path.is_file():
            path.write_text(uuid.uuid4().hex, encoding="ascii")
        self._run = wandb.init(
            id=path.read_text(encoding="ascii").strip(),
            resume="allow",
            dir=str(run.path),
            name=run.path.name,
            group=method_label(run.config),
            config={**run.config, "versions": dict(run.versions)},
        )

    def metrics(
        self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Draw one point of each curve."""
        self._draw(stamp, scalars, per_task)

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Draw the means of an evaluation and each task's."""
        means = {
            "success/mean": result.mean_success,
            "success_last/mean": result.mean_success_last,
            "return/mean": result.mean_return,
        }
        self._draw(stamp, means, result.task_means())

    def close(self) -> None:
        """Send what is left and end the page, if there is one."""
        if self._run is not None:
            self._run.finish()

    def _draw(
        self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Mapping[str, float]]
    ) -> None:
        points = dict(scalars)
        for name, values in per_task.items():
            points |= {f"{name}/{task}": value for task, value in values.items()}
        known = {name: value for name, value in points.items() if math.isfinite(value)}
        # wandb drops steps that it already has: a resumed run draws no point twice.
        self._run.log({**known, "env_steps": stamp.env_steps}, step=stamp.vector_step)
