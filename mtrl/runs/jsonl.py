"""The record of a run: `metrics.jsonl` and `evaluations.jsonl`. Reports and resume read them."""

import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mtrl.config.files import write_file
from mtrl.runs.directory import EVALUATIONS_NAME, LOG_NAMES, METRICS_NAME
from mtrl.runs.log import Evaluation, RunInfo, Stamp


class JsonLines:
    """Writes one JSON object a line, unbuffered: after a kill only the last line can be incomplete."""

    def open(self, run: RunInfo) -> None:
        """Open both files for appending. For a resumed run call `drop_after` first."""
        self._metrics, self._evaluations = (
            _LineFile(run.path / name) for name in (METRICS_NAME, EVALUATIONS_NAME)
        )

    def metrics(
        self, stamp: Stamp, scalars: Mapping[str, float], per_task: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write one line of training metrics; values that are not finite become null."""
        line: dict[str, Any] = stamp._asdict()
        line.update({tag: _finite(value) for tag, value in scalars.items()})
        line.update(
            {group: {task: _plain(v) for task, v in values.items()} for group, values in per_task.items()}
        )
        self._metrics.write(line)

    def evaluation(self, stamp: Stamp, result: Evaluation, *, final: bool) -> None:
        """Write one line with the means and every task's numbers."""
        of_tasks = result.task_means()
        line: dict[str, Any] = stamp._asdict()
        line.update(
            final=final,
            episodes_per_task=result.episodes_per_task,
            **{f"mean_{name}": _finite(value) for name, value in result.means().items()},
            tasks={
                task: {
                    **{group: _finite(values[task]) for group, values in of_tasks.items()},
                    "episodes": result.episodes_per_task,
                }
                for task in result.task_names
            },
        )
        self._evaluations.write(line)

    def flush(self) -> None:
        """Write lines that could not be written so far, and all lines to the disk. Raises OSError."""
        for file in (self._metrics, self._evaluations):
            file.flush()
            file.sync()

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._evaluations.close()


class History(NamedTuple):
    """The state of a run according to its record."""

    wall_s: float  # working time in seconds
    evaluated_at: int | None  # vector step of the last evaluation
    final: bool  # whether that evaluation completed a run
    success: float | None  # its mean success
    logged: int = 0  # vector step of the newest line
    steps: Mapping[str, Collection[int]] = {}  # vector steps that `drop_after` has kept, by the file's name


def drop_after(run_dir: Path, step: int, steps: int) -> History:
    """Drop lines after vector step `step` and incomplete lines; return the history of the rest.

    A resumed run takes those vector steps again; otherwise the record would hold them twice. If a vector step
    has several lines, only the last one is kept. In a run of `steps` vector steps the evaluation at the end
    must be final, and no other may be. Evaluations that break this rule, because the run was extended or
    shortened, are dropped.
    """
    kept = {name: _keep(run_dir / name, lambda line: _is_kept(line, step, steps)) for name in LOG_NAMES}
    return read_history(run_dir)._replace(steps=kept)


def _is_kept(line: Mapping[str, Any], step: int, steps: int) -> bool:
    at: int = line["vector_step"]
    is_last = at >= steps
    return at <= step and bool(line.get("final", is_last)) == is_last


def _keep(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> Collection[int]:
    """Rewrite a file with the last wanted line of each vector step, and return these vector steps.

    A long file is never in memory.
    """
    if not path.is_file():
        return ()
    kept: dict[int, tuple[int, int]] = {}  # vector step -> where its line begins, and its length
    begin = 0
    with open(path, "rb") as file:
        for raw in file:
            line = _parsed(raw)
            if line is not None and wanted(line):
                kept[line["vector_step"]] = begin, len(raw)
            begin += len(raw)
        places = list(kept.values())
        ends = [start + length for start, length in places]
        whole = [0, *ends] == [*(start for start, _ in places), begin]
        if whole and os.fstat(file.fileno()).st_nlink == 1:  # a copy of hard links gets a file of its own
            return kept.keys()  # the lines follow each other from the beginning to the end

        def pieces() -> Iterator[bytes]:
            for start, length in places:
                file.seek(start)
                yield file.read(length)

        write_file(path, pieces())
    return kept.keys()


def lost_lines(
    steps: Mapping[str, Collection[int]], step: int, *, log_interval: int, eval_interval: int
) -> list[str]:
    """Return a sentence for each log that lacks lines due by the checkpoint of vector step `step`.

    `steps` are those of a `History`.
    """
    sentences = []
    for name, interval, end in (
        (METRICS_NAME, log_interval, step + 1),
        (EVALUATIONS_NAME, eval_interval, step),  # the evaluation at a checkpoint comes after it
    ):
        lost = [due for due in range(interval, end, interval) if due not in steps[name]]
        if lost:
            sentences.append(
                f"{name} lacks {len(lost)} of its lines up to vector step {step:,} (first {lost[0]:,}, last "
                f"{lost[-1]:,}), for example after a power failure. They cannot be written again; the state "
                "of the run is complete."
            )
    return sentences


def read_history(run_dir: Path) -> History:
    """Return the history of the whole record. Changes nothing."""
    logged, evaluation = (_last_line(run_dir / name) for name in (METRICS_NAME, EVALUATIONS_NAME))
    return History(
        wall_s=max(line.get("wall_s", 0.0) for line in (logged, evaluation)),
        evaluated_at=evaluation.get("vector_step"),
        final=bool(evaluation.get("final", False)),
        success=evaluation.get("mean_success"),
        logged=max(line.get("vector_step", 0) for line in (logged, evaluation)),
    )


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Return the recorded evaluations of a run, oldest first."""
    path = run_dir / EVALUATIONS_NAME
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        return [line for raw in file if (line := _parsed(raw)) is not None]


class _LineFile:
    def __init__(self, path: Path) -> None:
        # A run from elsewhere may hold a symbolic link to any file: nothing is appended to that.
        self._file = io.FileIO(
            path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)
        )
        self._waiting = b""  # lines that could not be written yet, for example to a full disk
        self._unsafe = bytearray()  # lines that were written and may not be on the disk yet
        self._safe = self._size()  # bytes of the file before them

    def write(self, line: Mapping[str, Any]) -> None:
        self._waiting += (json.dumps(line, allow_nan=False) + "\n").encode()
        self.flush()

    def flush(self) -> None:
        """Write the pending lines in order; after an OSError all of them stay pending."""
        rest = memoryview(self._waiting)
        end = self._size()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            # Remove an incomplete line: the next one must begin on a line of its own.
            self._file.truncate(end)
            raise
        self._unsafe += self._waiting
        self._waiting = b""

    def sync(self) -> None:
        """Write all lines to the disk; after an OSError those since the last time are pending again."""
        try:
            os.fsync(self._file.fileno())
        except OSError:
            # The kernel reports only now that a network file system or a quota has refused what it took, and
            # may have dropped it.
            self._waiting = bytes(self._unsafe) + self._waiting
            self._unsafe.clear()
            self._file.truncate(min(self._safe, self._size()))
            raise
        self._unsafe.clear()
        self._safe = self._size()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def _last_line(path: Path) -> dict[str, Any]:
    """Return the last complete line, reading only the end of a long file; {} if there is none."""
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        length = 1 << 16
        while True:
            start = file.seek(max(0, size - length))
            raws = file.read(size - start).splitlines(keepends=True)
            # The first of them may begin in the middle of a line.
            for raw in reversed(raws if start == 0 else raws[1:]):
                if (line := _parsed(raw)) is not None:
                    return line
            if start == 0:
                return {}
            length *= 4


def _parsed(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    known = isinstance(line, dict) and type(line.get("vector_step")) is int
    return line if known else None


def _plain(value: Any) -> Any:
    """Return a number, or the numbers of pairs of tasks, with None where it is not finite."""
    if isinstance(value, Mapping):
        return {task: _finite(number) for task, number in value.items()}
    return _finite(value)


def _finite(value: float) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None
