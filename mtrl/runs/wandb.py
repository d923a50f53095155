"""Curves on Weights & Biases, with the configuration of the run. Only this module imports wandb."""

import contextlib
import math
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb

from mtrl.config.files import write_file
from mtrl.config.labels import method_label
from mtrl.errors import UserError
from mtrl.runs.log import Evaluation, RunInfo, Stamp

_ID_NAME = "wandb.id"  # in the run directory: a resumed run continues its page


class WeightsAndBiases:
    """A page per run, grouped by method; charts have a line per task, such as `success/reach-v3`.

    The environment variables of wandb (WANDB_PROJECT, WANDB_MODE=offline, ...) apply. Points that a killed
    process drew after its last checkpoint stay; the resumed run draws them a second time. Pages that a former
    version began show their former points against wandb's own step.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: RunInfo) -> None:
        """Start or continue the page and give it the configuration and versions.

        Raises:
            UserError: wandb does not know the user, or refuses one of its settings.
            OSError: no connection, or the run directory cannot be written.
        """
        identity = _identity(run.path / _ID_NAME)
        with _lost_connections():
            self._run = wandb.init(
                id=identity,
                resume="allow",
                dir=str(run.path),
                name=run.path.name,
                group=method_label(run.config),
                config={**run.config, "versions": dict(run.versions)},
            )
            # Not wandb's own step, which must grow: a checkpoint's evaluation may come after a resume.
            self._run.define_metric("vector_step")
            self._run.define_metric("*", step_metric="vector_step")

    def metrics(
        self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Draw one point of each curve."""
        points = dict(scalars)
        for name, values in per_task.items():
            points |= {f"{name}/{task}": value for task, value in values.items()}
        known = {name: value for name, value in points.items() if math.isfinite(value)}
        with _lost_connections():
            self._run.log({**known, "env_steps": stamp.env_steps, "vector_step": stamp.vector_step})

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Draw the means of an evaluation and each task's."""
        means = {f"{name}/mean": value for name, value in result.means().items()}
        self.metrics(stamp, means, result.task_means())

    def close(self) -> None:
        """Send what is left and end the page, if there is one."""
        if self._run is not None:
            with _lost_connections():
                self._run.finish()


def _identity(path: Path) -> str:
    """Return the page's id in the file `path`; write a new one if there is none."""
    # A run from elsewhere may hold a link to any file, which is neither read nor written through.
    is_own = path.is_file() and not path.is_symlink()
    found = path.read_text(encoding="ascii", errors="replace").strip() if is_own else ""
    if not re.fullmatch(r"[\w-]+", found):  # none, or empty after a power cut
        found = uuid.uuid4().hex
        write_file(path, found.encode())
    return found


@contextlib.contextmanager
def _lost_connections() -> Iterator[None]:
    """Raise wandb's errors as a sink must: UserError for a mistake, OSError for a lost connection."""
    try:
        yield
    except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:  # the second is a CommError
        raise UserError(
            f"Weights & Biases: {error}. Run `wandb login`, or set WANDB_API_KEY, WANDB_MODE=offline to keep "
            "the curves on this machine, or train.sinks without wandb."
        ) from error
    except wandb.errors.CommError as error:
        raise OSError(f"Weights & Biases: {error}") from error
