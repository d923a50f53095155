"""Where a run's numbers go: JSON lines for reports, TensorBoard for people.

The x axis of every curve is environment steps summed over tasks. Only this module imports
torch.utils.tensorboard.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mtrl.runs import console
from mtrl.runs.evaluation import Evaluation
from mtrl.runs.directory import EVALUATIONS_NAME, METRICS_NAME, TEMPORARY_PREFIX

# Charts that draw all tasks of a group, whose tags are `<group>/<task>`, in one frame.
_CHARTS = {
    "success per task": "success",
    "return per task": "return",
    "temperature per task": "alpha",
    "critic loss per task": "critic_loss",
    "weight per task": "weight",
}


class Logger:
    """Writes `metrics.jsonl`, `evaluations.jsonl` and TensorBoard event files of one run.

    Args:
        run_dir: the run, held by the caller.
        task_names: T names, the order of per-task values.
        config: resolved configuration, nested mappings of plain values.
        versions: what the run is made with (`mtrl.runs.versions.versions`).
        resume_step: vector step of the checkpoint the run continues from. What was logged after it is
            dropped, what was logged at it stays (the caller must not log it again); `wall_s` counts on.
    """

    def __init__(
        self,
        run_dir: Path,
        task_names: Sequence[str],
        *,
        config: Mapping[str, Any],
        versions: Mapping[str, str],
        resume_step: int | None = None,
    ) -> None:
        self._task_names = tuple(task_names)
        paths = (run_dir / METRICS_NAME, run_dir / EVALUATIONS_NAME)
        kept = [] if resume_step is None else [_drop_after(path, resume_step) for path in paths]
        env_steps = max((line.get("env_steps", 0) for line in kept), default=0)
        wall_before = max((line.get("wall_s", 0.0) for line in kept), default=0.0)
        self._started = time.monotonic() - wall_before
        self._metrics, self._evaluations = (_JsonLines(path) for path in paths)
        # TensorBoard forgets points AT the purge step too; the points at the last kept line are to stay.
        purge_step = None if resume_step is None else env_steps + 1
        self._board: SummaryWriter | None = SummaryWriter(str(run_dir), purge_step=purge_step)
        self._write_description(config, versions, env_steps, resumed=resume_step is not None)

    def metrics(
        self,
        vector_step: int,
        env_steps: int,
        scalars: Mapping[str, float],
        per_task: Mapping[str, Sequence[float]],
    ) -> None:
        """Log training metrics at one step.

        Args:
            vector_step: vector steps so far.
            env_steps: environment steps so far, summed over tasks and copies.
            scalars: TensorBoard tag (`train/critic_loss`) -> value.
            per_task: group (`alpha`) -> T values in the order of `task_names`; tags are `<group>/<task>`.

        NaN and infinity mean 'no value': null in the line, no point in the curve.

        Raises:
            OSError: the line cannot be written (disk full); the file ends with its last whole line.
        """
        by_task = {
            group: dict(zip(self._task_names, map(float, values), strict=True))
            for group, values in per_task.items()
        }
        line = self._stamp(vector_step, env_steps)
        line.update({tag: _finite(value) for tag, value in scalars.items()})
        line.update(
            {group: {task: _finite(v) for task, v in values.items()} for group, values in by_task.items()}
        )
        self._metrics.write(line)
        self._draw(env_steps, [*scalars.items(), *_task_points(by_task)])

    def evaluation(self, vector_step: int, env_steps: int, result: Evaluation, *, final: bool) -> None:
        """Log an evaluation; `final` marks the one that ends the run. Raises OSError as `metrics` does."""
        by_task = {
            group: dict(zip(result.task_names, array.mean(axis=1).tolist(), strict=True))
            for group, array in (
                ("success", result.success),
                ("success_last", result.success_last),
                ("return", result.episode_return),
            )
        }
        line = self._stamp(vector_step, env_steps)
        line.update(
            final=final,
            episodes_per_task=result.episodes_per_task,
            mean_success=_finite(result.mean_success),
            mean_success_last=_finite(result.mean_success_last),
            mean_return=_finite(result.mean_return),
            tasks={
                task: {
                    **{group: _finite(values[task]) for group, values in by_task.items()},
                    "episodes": result.episodes_per_task,
                }
                for task in result.task_names
            },
        )
        self._evaluations.write(line)
        # The names of the means are Stable-Baselines3's, where a 'reward' is an episode's return.
        means = {
            "eval/success_rate": result.mean_success,
            "eval/success_rate_last": result.mean_success_last,
            "eval/mean_reward": result.mean_return,
        }
        self._draw(env_steps, [*means.items(), *_task_points(by_task)])

    def close(self) -> None:
        """Flush and close all files; further calls do nothing."""
        self._metrics.close()
        self._evaluations.close()
        if self._board is not None:
            with self._board_errors():
                if self._session_end is not None:
                    self._board.file_writer.add_summary(self._session_end)
                self._board.close()
        self._board = None

    def _stamp(self, vector_step: int, env_steps: int) -> dict[str, Any]:
        wall = round(time.monotonic() - self._started, 3)
        return {"vector_step": int(vector_step), "env_steps": int(env_steps), "wall_s": wall}

    def _draw(self, env_steps: int, points: Iterable[tuple[str, float]]) -> None:
        if self._board is None:
            return
        with self._board_errors():
            for tag, value in points:
                if math.isfinite(value):
                    self._board.add_scalar(tag, float(value), env_steps)
            self._board.flush()

    @contextlib.contextmanager
    def _board_errors(self) -> Iterator[None]:
        """Curves are for people watching: losing them must not stop training, losing lines may."""
        try:
            yield
        except OSError as error:
            self._board = None
            console.warning(f"TensorBoard curves end here ({error}); the JSON lines go on")

    def _write_description(
        self, config: Mapping[str, Any], versions: Mapping[str, str], env_steps: int, *, resumed: bool
    ) -> None:
        assert self._board is not None
        self._session_end = None
        with self._board_errors():
            self._board.add_text("config", f"```yaml\n{_yaml(config)}```", env_steps)
            self._board.add_text("versions", _markdown_table(versions), env_steps)
            if resumed:  # the first event file has the rest
                return
            charts = {title: ["Multiline", [f"{group}/.*"]] for title, group in _CHARTS.items()}
            self._board.add_custom_scalars({"tasks": charts})
            # Not add_hparams: it opens a second event file, and TensorBoard follows only the newest of a run.
            experiment, start, self._session_end = hparams(_flat(config), {"eval/success_rate": math.nan})
            self._board.file_writer.add_summary(experiment)
            self._board.file_writer.add_summary(start)
            self._board.flush()


class _JsonLines:
    """Append-only file of JSON objects, one a line, each handed to the kernel at once."""

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path, "a")

    def write(self, line: Mapping[str, Any]) -> None:
        rest = memoryview((json.dumps(line, allow_nan=False) + "\n").encode())
        end = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            # The next line must not be glued to half of this one.
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()


def _drop_after(path: Path, step: int) -> dict[str, Any]:
    """Drop lines after vector step `step` and broken ones, atomically; returns the last line kept."""
    if not path.exists():
        return {}
    kept: list[bytes] = []
    last: dict[str, Any] = {}
    content = path.read_bytes()
    for raw in content.splitlines(keepends=True):
        line = _parsed(raw)
        if line is not None and line["vector_step"] <= step:
            kept.append(raw)
            last = line
    rest = b"".join(kept)
    if rest != content:
        temporary = path.with_name(TEMPORARY_PREFIX + path.name)
        with open(temporary, "wb") as file:
            file.write(rest)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return last


def _parsed(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "vector_step" in line else None


def _task_points(by_task: Mapping[str, Mapping[str, float]]) -> list[tuple[str, float]]:
    return [(f"{group}/{task}", value) for group, values in by_task.items() for task, value in values.items()]


def _finite(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif isinstance(value, list | tuple):
            flat[prefix + key] = ", ".join(map(str, value))
        elif value is not None:
            flat[prefix + key] = value
    return flat


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _markdown_table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
