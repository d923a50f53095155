"""TensorBoard curves. Only this module imports torch.utils.tensorboard.

A training run is one run of TensorBoard. SCALARS sorts groups of charts by name; the digits put success
first. Numbers by task are tags such as `success/reach-v3`; CUSTOM SCALARS has a chart of all tasks for each
such number. HPARAMS has all settings and shows those first in which runs differ.

Weights & Biases has a sink of its own, `wandb`.
"""

import math
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import yaml
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams

from mtrl.config.labels import method_label, methods_of
from mtrl.config.presets import INCIDENTAL, flat
from mtrl.runs.directory import EVENT_FILES
from mtrl.runs.log import STEP_LABEL, Evaluation, RunInfo, Stamp

# Of the means of an evaluation.
_TAGS = {
    "success": "1_success/all_tasks",
    "success_last": "3_success_at_last_step/all_tasks",
    "return": "2_return/all_tasks",
}
# Tags of the log that are shown in the group of the corresponding evaluation.
_RENAMED = {
    "rollout/success_rate": "1_success/training_episodes",
    "rollout/ep_rew_mean": "2_return/training_episodes",
}
_FIRST = ("success", "training_success", "success_last", "return")  # of the charts of all tasks
_ABOUT = (
    f"The horizontal axis of all curves is {STEP_LABEL}. docs/results-schema.md says what each number is."
)


class TensorBoard:
    """An event file in the run directory, and one more after each resume."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._session_end: Any = None
        self._complete = False
        self._groups: set[str] = set()  # of numbers by task that have a chart

    def open(self, run: RunInfo) -> None:
        """Open the event files and describe the run in them."""
        self._open.enter_context(_without_tracebacks_of_full_disks())
        # TensorBoard also drops points AT the purge step; those at the checkpoint are still valid.
        self._purge_step = None if run.resumed_at is None else run.resumed_at.vector_step + 1
        self._board = self._writer(str(run.path))
        self._tags = _task_tags(run.task_names)
        step = 0 if run.resumed_at is None else run.resumed_at.vector_step
        self._board.add_text("about", _ABOUT, step)
        config = yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True)
        self._board.add_text("config", f"```yaml\n{config}```", step)
        rows = "".join(f"\n| {name} | {value} |" for name, value in run.versions.items())
        self._board.add_text("versions", f"| | |\n|---|---|{rows}", step)
        # Not add_hparams, which opens a second event file: TensorBoard follows only the newest of a run.
        # Nor the description of the experiment: without it TensorBoard compares the settings of all runs.
        _, start, self._session_end = hparams(_hparams(run.config), {})
        if run.resumed_at is None:  # else the first event file has it
            self._board.file_writer.add_summary(start)
        self._board.flush()

    def metrics(
        self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Draw one point of each curve."""
        self._draw(stamp, ((_RENAMED.get(tag, tag), value) for tag, value in scalars.items()), per_task)

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Draw the means of an evaluation over all tasks and for each task."""
        means = ((_TAGS[name], value) for name, value in result.means().items())
        self._draw(stamp, means, result.task_means())
        self._complete |= final

    def close(self) -> None:
        """Flush and close the file."""
        with self._open:
            if self._complete:  # TensorBoard calls a session that has ended successful
                self._board.file_writer.add_summary(self._session_end)

    def _writer(self, folder: str) -> SummaryWriter:
        # TensorBoard reads event files in the order of their names, which hold the time: a clock that is
        # behind must not put the file of a resumed run before those that it continues.
        names = [path.name.split(".") for path in Path(folder).glob(EVENT_FILES)]
        newest = max((int(name[3]) for name in names if name[3].isdigit()), default=-1)
        clock = SimpleNamespace(**{**vars(time), "time": lambda: max(time.time(), newest + 1)})
        with patch.object(event_file_writer, "time", clock):
            writer = SummaryWriter(folder, purge_step=self._purge_step)
        self._open.callback(writer.close)
        return writer

    def _draw(
        self,
        stamp: Stamp,
        points: Iterable[tuple[str, float]],
        per_task: Mapping[str, Mapping[str, float]],
    ) -> None:
        if not self._groups >= per_task.keys():
            self._groups |= per_task.keys()
            self._board.file_writer.add_summary(custom_scalars(_layout(self._groups)), stamp.vector_step)
        by_task = (
            (f"{group}/{self._tags[task]}", value)
            for group, values in per_task.items()
            for task, value in values.items()
        )
        for tag, value in (*points, *by_task):
            if math.isfinite(value):
                self._board.add_scalar(tag, float(value), stamp.vector_step)
        self._board.flush()


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


def _task_tags(tasks: Sequence[str]) -> dict[str, str]:
    """Return the tasks' names as ends of tags, all different: TensorBoard replaces other signs by _."""
    tags: dict[str, str] = {}
    for task in tasks:
        tag = re.sub(r"[^-\w.]", "_", task)
        while tag in tags.values():
            tag += "_"
        tags[task] = tag
    return tags


def _layout(groups: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Return the charts of CUSTOM SCALARS: one for each group, with a line per task."""
    known = set(groups)
    parts = {
        "each task": [name for name in _FIRST if name in known],
        "each task: learning": sorted(known.difference(_FIRST)),
    }
    return {  # a tag is matched by its beginning
        title: {name: ["Multiline", [f"{re.escape(name)}/"]] for name in names}
        for title, names in parts.items()
        if names
    }


def _hparams(config: Mapping[str, Any]) -> dict[str, str]:
    """Return all settings that may change a result, as text: numbers would be shown as 0.0000 and 2.0e+5."""
    methods = methods_of(config)
    are_equal = methods["critic"] == methods["actor"]
    options = {
        f"method.{key}" if are_equal else f"method.{network}.{key}": value
        for network, (_, own) in methods.items()
        for key, value in own.items()
    }
    of_methods = ("method", "critic_method", "actor_method")
    others = {
        key: value
        for key, value in flat(config).items()
        if key not in INCIDENTAL and not key.startswith(of_methods)
    }
    settings = {"method": method_label(config), **options, **others}
    return {
        key: ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for key, value in settings.items()
    }
