"""The log of a run: evaluations, the protocol and registry of sinks, and `Log`, which writes to all of them.

The horizontal axis of every curve, here and in reports, is vector steps (`STEP_LABEL`), the unit of `steps`
and of all intervals in the configuration. With one copy of each task a vector step is one env step per task.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrl.registry import Registry
from mtrl.runs import console

if TYPE_CHECKING:
    from mtrl.runs.jsonl import JsonLines

STEP_LABEL = "vector steps (env steps of each copy of a task)"


class Evaluation(NamedTuple):
    """Results of N episodes of each of T tasks.

    Success follows Meta-World: an episode succeeds if the task reports success at ANY step. Success at the
    last step is stored as well, because published numbers use either rule.
    """

    task_names: tuple[str, ...]  # T
    success: NDArray[np.float64]  # [T, N], 1 or 0, at any step of the episode; NaN: the task knows none
    success_last: NDArray[np.float64]  # [T, N], at the episode's last step
    episode_return: NDArray[np.float64]  # [T, N], undiscounted sum of unscaled rewards

    @property
    def episodes_per_task(self) -> int:
        """N."""
        return int(self.success.shape[1])

    @property
    def mean_success(self) -> float:
        """Any-step success rate in [0, 1], over tasks and episodes; NaN if a task knows no success."""
        return float(self.success.mean())

    @property
    def mean_success_last(self) -> float:
        """Last-step success rate in [0, 1], over tasks and episodes; NaN if a task knows no success."""
        return float(self.success_last.mean())

    @property
    def mean_return(self) -> float:
        """Mean episode return over tasks and episodes."""
        return float(self.episode_return.mean())

    @property
    def score(self) -> float:
        """Mean success; the mean return if a task knows no success."""
        return self.mean_return if np.isnan(self.mean_success) else self.mean_success

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        of_tasks = self.task_means().values()
        rows = {task: [values[task] for values in of_tasks] for task in self.task_names}
        rows["mean"] = list(self.means().values())
        head = "".join(f"<th>{name}</th>" for name in ("task", "success", "last step", "return"))
        body = "".join(
            f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{value:.3g}</td>" for value in row) + "</tr>"
            for name, row in rows.items()
        )
        caption = f"{self.episodes_per_task} episodes per task"
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"

    def means(self) -> dict[str, float]:
        """Means over tasks and episodes: "success", "success_last", "return"."""
        return {
            "success": self.mean_success,
            "success_last": self.mean_success_last,
            "return": self.mean_return,
        }

    def task_means(self) -> dict[str, dict[str, float]]:
        """Means over the episodes: "success", "success_last", "return" -> task name -> value."""
        tables = {"success": self.success, "success_last": self.success_last, "return": self.episode_return}
        return {
            group: dict(zip(self.task_names, table.mean(axis=1).tolist(), strict=True))
            for group, table in tables.items()
        }


class Stamp(NamedTuple):
    """A time of the run."""

    vector_step: int  # vector steps so far
    env_steps: int  # of all environments together
    wall_s: float  # working time of all processes of the run, in seconds


class RunInfo(NamedTuple):
    """What a sink is told about the run when it is opened."""

    path: Path
    task_names: tuple[str, ...]  # T
    config: Mapping[str, Any]  # resolved, nested mappings of plain values
    versions: Mapping[str, str]  # of all packages that influence results
    resumed_at: Stamp | None  # points that earlier processes logged after it are invalid; None: a new run


class Sink(Protocol):
    """Receives a run's numbers. Pass objects to `train(..., sinks=[...])` or name classes in `train.sinks`.

    If a method raises OSError (a full disk, a lost connection), the sink is closed with a warning and the run
    goes on. Other exceptions are defects of the sink and end the run.
    """

    def open(self, run: RunInfo) -> None:
        """Begin; called once, before anything else."""
        ...

    def metrics(
        self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Receive a log line: tag -> value and group -> task -> value. NaN and infinity mean 'no value'."""
        ...

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Receive an evaluation; `final` marks the one that completes the run."""
        ...

    def close(self) -> None:
        """Write pending data and close; called once, at the end of the run or after an OSError."""
        ...


SINKS = Registry(
    "sink",
    {"tensorboard": "mtrl.runs.tensorboard:TensorBoard", "wandb": "mtrl.runs.wandb:WeightsAndBiases"},
)


def by_task(tasks: Sequence[str], values: Any) -> dict[str, Any]:
    """Return values [T] by task, or the upper triangle of a symmetric [T, T] by two tasks.

    Raises:
        ValueError: another shape.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((len(tasks),), (len(tasks),) * 2):
        raise ValueError(f"expected values of {len(tasks)} tasks, [T] or [T, T]; found {list(array.shape)}.")
    if array.ndim == 1:
        return dict(zip(tasks, array.tolist(), strict=True))
    return {
        task: dict(zip(tasks[index + 1 :], array[index, index + 1 :].round(4).tolist(), strict=True))
        for index, task in enumerate(tasks)
    }


class Log:
    """Gives every number to the record and to all sinks.

    Args:
        run: the run.
        record: the files that reports and resume read; its errors are raised.
        sinks: further sinks; one that fails is closed.
    """

    def __init__(self, run: RunInfo, record: "JsonLines", sinks: Sequence[Sink] = ()) -> None:
        self._tasks = run.task_names
        self._record = record
        self._sinks = list(sinks)
        wall_before = 0.0 if run.resumed_at is None else run.resumed_at.wall_s  # of earlier processes
        self._started = time.monotonic() - wall_before
        record.open(run)
        self._each(lambda sink: sink.open(run))

    def stamp(self, vector_step: int, num_envs: int) -> Stamp:
        """Return a stamp with the working time up to now."""
        wall = round(time.monotonic() - self._started, 3)
        return Stamp(vector_step, vector_step * num_envs, wall)

    def metrics(self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Any]) -> None:
        """Log one line; `per_task` is group -> [T] in the order of the tasks, or [T, T], for the record only.

        Raises:
            OSError: the record cannot be written (disk full). It keeps this line and writes it before the
                next one.
        """
        named = {group: by_task(self._tasks, values) for group, values in per_task.items()}
        self._record.metrics(stamp, scalars, named)
        # Hundreds of curves of pairs of tasks are unreadable; the report draws them as heat maps.
        curves = {group: values for group, values in named.items() if np.ndim(per_task[group]) == 1}
        self._each(lambda sink: sink.metrics(stamp, scalars, curves))

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Log an evaluation. Raises OSError as `metrics` does."""
        self._record.evaluation(stamp, result, final=final)
        self._each(lambda sink: sink.evaluation(stamp, result, final=final))

    def flush(self) -> None:
        """Write pending lines of the record. Raises OSError as `metrics` does."""
        self._record.flush()

    def close(self) -> None:
        """Close the record and all sinks; further calls do nothing."""
        while self._sinks:
            sink = self._sinks.pop(0)
            try:
                sink.close()
            except OSError as error:
                _warn(sink, error)
        self._record.close()

    def _each(self, action: Any) -> None:
        for sink in tuple(self._sinks):
            try:
                action(sink)
            except OSError as error:
                # The run goes on without a sink, but not without its record, whose errors are raised.
                self._sinks.remove(sink)
                _warn(sink, error)
                with contextlib.suppress(OSError):
                    sink.close()


def _warn(sink: Sink, error: OSError) -> None:
    console.warning(
        f"{type(sink).__name__} was closed ({error}); the run goes on and still writes its .jsonl files"
    )
