"""Where a run's numbers go: what a sink is, the registry of sinks, and their fan-out.

The x axis of every curve, here and in reports, is vector steps (`STEP_LABEL`), the unit of `steps` and of
all intervals in the configuration; with one copy of each task they are the env steps per task of published
curves.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrl.registry import Registry
from mtrl.runs import console

STEP_LABEL = "vector steps (env steps of each copy of a task)"


class Evaluation(NamedTuple):
    """Episodes of one evaluation, tasks first; N episodes per task.

    Success follows Meta-World: an episode succeeds when the task's success flag is up at ANY step. The flag
    at the last step is kept next to it, because published numbers use either rule.
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
        """What a better policy has more of: success, or the return where a task knows no success."""
        return self.mean_return if np.isnan(self.mean_success) else self.mean_success

    def task_means(self) -> dict[str, dict[str, float]]:
        """Means over the episodes: "success", "success_last", "return" -> task name -> value."""
        tables = {"success": self.success, "success_last": self.success_last, "return": self.episode_return}
        return {
            group: dict(zip(self.task_names, table.mean(axis=1).tolist(), strict=True))
            for group, table in tables.items()
        }


class Stamp(NamedTuple):
    """When something happened."""

    vector_step: int  # vector steps so far
    env_steps: int  # of all environments together
    wall_s: float  # seconds of all processes that worked on the run


class RunInfo(NamedTuple):
    """What a sink learns of the run when it is opened."""

    path: Path
    task_names: tuple[str, ...]  # T
    config: Mapping[str, Any]  # resolved, nested mappings of plain values
    versions: Mapping[str, str]  # of everything that shapes the numbers
    resumed_at: Stamp | None  # points after it belong to a future that was abandoned; None: a new run


class Sink(Protocol):
    """Takes a run's numbers. `train(..., sinks=[...])` takes objects, `train.sinks` names of their classes.

    An OSError of any method (a full disk, a lost connection) ends the sink with a warning and the run goes
    on; other exceptions are taken for defects of the sink and end the run.
    """

    def open(self, run: RunInfo) -> None:
        """Begin; called once, before anything else."""
        ...

    def metrics(
        self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Take one log line: tag -> value and group -> task -> value. NaN and infinity mean 'no value'."""
        ...

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Take an evaluation; `final` marks the one that completes the run."""
        ...

    def close(self) -> None:
        """Write what is left and close; called once, however the run ends, at once by an OSError."""
        ...


SINKS = Registry("sink", {"tensorboard": "mtrl.runs.tensorboard:TensorBoard"})


def by_task(tasks: Sequence[str], values: Any) -> dict[str, Any]:
    """Return values [T] by task; of symmetric ones [T, T], those above the diagonal by two tasks.

    Raises:
        ValueError: of another shape.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape not in ((len(tasks),), (len(tasks),) * 2):
        raise ValueError(f"values of {len(tasks)} tasks have shape [T] or [T, T]; found {list(array.shape)}.")
    if array.ndim == 1:
        return dict(zip(tasks, array.tolist(), strict=True))
    return {
        task: dict(zip(tasks[index + 1 :], array[index, index + 1 :].round(4).tolist(), strict=True))
        for index, task in enumerate(tasks)
    }


class Record(Sink, Protocol):
    """A sink that loses nothing: what it could not write it writes later."""

    def flush(self) -> None:
        """Write what could not be written so far; raises OSError if it still cannot."""
        ...


class Log:
    """Gives every number to the record and to all sinks.

    Args:
        run: the run.
        record: the one that reports and resume read (`mtrl.runs.jsonl.JsonLines`): its errors are
            raised.
        sinks: for people: one that fails is left out from then on.
        wall_before: seconds that earlier processes of a resumed run have worked.
    """

    def __init__(
        self, run: RunInfo, record: Record, sinks: Sequence[Sink] = (), *, wall_before: float = 0.0
    ) -> None:
        self._tasks = run.task_names
        self._record = record
        self._sinks = list(sinks)
        self._started = time.monotonic() - wall_before
        record.open(run)
        self._each(lambda sink: sink.open(run))

    def stamp(self, vector_step: int, num_envs: int) -> Stamp:
        """Return the stamp of now."""
        wall = round(time.monotonic() - self._started, 3)
        return Stamp(vector_step, vector_step * num_envs, wall)

    def metrics(self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Any]) -> None:
        """Log one line; per_task: group -> [T] in the order of the tasks, or [T, T], for the record alone.

        Raises:
            OSError: the record cannot be written (disk full); it ends with its last whole line, and this one
                is written before the next.
        """
        named = {group: by_task(self._tasks, values) for group, values in per_task.items()}
        self._record.metrics(stamp, scalars, named)
        # Nobody reads hundreds of curves of pairs: those go to the record alone, for the report's heat maps.
        curves = {group: values for group, values in named.items() if np.ndim(per_task[group]) == 1}
        self._each(lambda sink: sink.metrics(stamp, scalars, curves))

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Log an evaluation. Raises OSError as `metrics` does."""
        self._record.evaluation(stamp, result, final=final)
        self._each(lambda sink: sink.evaluation(stamp, result, final=final))

    def flush(self) -> None:
        """Write what the record still owes. Raises OSError as `metrics` does."""
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
                # Losing curves that people watch must not stop training; losing lines of the record may.
                self._sinks.remove(sink)
                _warn(sink, error)
                with contextlib.suppress(OSError):
                    sink.close()


def _warn(sink: Sink, error: OSError) -> None:
    console.warning(f"{type(sink).__name__} ends here ({error}); the JSON lines go on")
