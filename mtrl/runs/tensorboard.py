"""TensorBoard curves. Only this module imports torch.utils.tensorboard.

TensorBoard sorts groups of charts by name; the digits put success first. It gives a colour to each run and
not to each tag, so every task is a run of its own below `tasks/`, and one chart shows all tasks. To compare
whole runs, filter them with the expression `^(?!.*tasks/)`.

Weights & Biases has a sink of its own, `wandb`.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import yaml
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mtrl.config.files import paths_in
from mtrl.config.labels import method_label, methods_of
from mtrl.runs.directory import TASKS_NAME
from mtrl.runs.log import STEP_LABEL, Evaluation, RunInfo, Stamp

SUCCESS, RETURN = "1_success/all_tasks", "2_return/all_tasks"
SUCCESS_LAST = "3_success_at_last_step/all_tasks"
# Tags of the log that are shown in the group of the corresponding evaluation.
_RENAMED = {
    "rollout/success_rate": "1_success/training_episodes",
    "rollout/ep_rew_mean": "2_return/training_episodes",
}
_TASK_TAGS = {
    "success": "1_success/each_task",
    "training_success": "1_success/each_task_in_training",
    "return": "2_return/each_task",
    "success_last": "3_success_at_last_step/each_task",
}
_ABOUT = f"The horizontal axis of all curves is {STEP_LABEL}."


class TensorBoard:
    """Event files in the run directory, and one more for each task in `tasks/`."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._session_end: Any = None

    def open(self, run: RunInfo) -> None:
        """Open the event files and describe the run in them."""
        self._open.enter_context(_without_tracebacks_of_full_disks())
        # TensorBoard also drops points AT the purge step; those at the checkpoint are still valid.
        self._purge_step = None if run.resumed_at is None else run.resumed_at.vector_step + 1
        self._board = self._writer(str(run.path))
        folders = paths_in(run.path / TASKS_NAME, run.task_names)
        self._tasks = {task: self._writer(str(folder)) for task, folder in folders.items()}
        step = 0 if run.resumed_at is None else run.resumed_at.vector_step
        self._board.add_text("about", _ABOUT, step)
        config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
        self._board.add_text("config", f"```yaml\n{config}```", step)
        rows = "".join(f"\n| {name} | {value} |" for name, value in run.versions.items())
        self._board.add_text("versions", f"| | |\n|---|---|{rows}", step)
        if run.resumed_at is None:  # else the first event file has them
            # Not add_hparams, which opens a second event file: TensorBoard follows only the newest of a run.
            experiment, start, self._session_end = hparams(_hparams(run.config), {SUCCESS: math.nan})
            self._board.file_writer.add_summary(experiment)
            self._board.file_writer.add_summary(start)
        self._board.flush()

    def metrics(
        self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Draw one point of each curve."""
        self._draw(self._board, stamp, ((_RENAMED.get(tag, tag), value) for tag, value in scalars.items()))
        self._draw_tasks(stamp, per_task)

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Draw the means of an evaluation over all tasks and for each task."""
        success = ((SUCCESS, result.mean_success), (SUCCESS_LAST, result.mean_success_last))
        self._draw(self._board, stamp, (*success, (RETURN, result.mean_return)))
        self._draw_tasks(stamp, result.task_means())

    def close(self) -> None:
        """Flush and close all files."""
        with self._open:  # closes every file, even if closing another one fails
            if self._session_end is not None:
                self._board.file_writer.add_summary(self._session_end)

    def _writer(self, folder: str) -> SummaryWriter:
        # TensorBoard reads event files in the order of their names, which hold the time: a clock that is
        # behind must not put the file of a resumed run before those that it continues.
        names = [path.name.split(".") for path in Path(folder).glob("events.out.tfevents.*")]
        newest = max((int(name[3]) for name in names if name[3].isdigit()), default=-1)
        clock = SimpleNamespace(**{**vars(time), "time": lambda: max(time.time(), newest + 1)})
        with patch.object(event_file_writer, "time", clock):
            writer = SummaryWriter(folder, purge_step=self._purge_step)
        self._open.callback(writer.close)
        return writer

    def _draw_tasks(self, stamp: Stamp, per_task: Mapping[str, Mapping[str, float]]) -> None:
        for task, board in self._tasks.items():
            named = ((_TASK_TAGS.get(group, f"each_task/{group}"), group) for group in per_task)
            self._draw(board, stamp, ((tag, per_task[group][task]) for tag, group in named))

    def _draw(self, board: SummaryWriter, stamp: Stamp, points: Iterable[tuple[str, float]]) -> None:
        for tag, value in points:
            if math.isfinite(value):
                board.add_scalar(tag, float(value), stamp.vector_step)
        board.flush()


@contextmanager
def _without_tracebacks_of_full_disks() -> Iterator[None]:
    """Print no traceback of an OSError in tensorboard's threads: its writer raises the error again."""
    before = threading.excepthook

    def hook(failure: threading.ExceptHookArgs) -> None:
        known = type(failure.thread).__module__.startswith("tensorboard.")
        if not (known and issubclass(failure.exc_type, OSError)):
            before(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        if threading.excepthook is hook:
            threading.excepthook = before


def _hparams(config: Mapping[str, Any]) -> dict[str, str]:
    """Return five columns: TensorBoard's page shows five, in alphabetical order."""
    both = [own for _, own in methods_of(config).values()]
    options = [", ".join(f"{key}={value}" for key, value in own.items()) or "none" for own in both]
    return {
        "method": method_label(config),
        "method_options": " / ".join(dict.fromkeys(options)),
        "seed": str(config.get("seed")),  # the page would write numbers as 0.0000 and 2.0e+5
        "steps": f"{config.get('steps', 0):,}",
        "tasks": ", ".join(map(str, config.get("tasks", ()))),
    }
