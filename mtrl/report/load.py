"""Runs as data: what a run directory holds, and tidy tables of many. docs/results-schema.md has the columns.

Files are read by their documented schema, and config.yaml as plain YAML: a user's own combiner, suite or
network is neither needed nor imported. A run may come from anywhere, so every file is checked, and none can
make reading slow.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mtrl.config.files import expand
from mtrl.config.labels import method_label
from mtrl.config.presets import flat
from mtrl.errors import UserError
from mtrl.report.lines import (
    LARGEST_STEP,
    Line,
    check_number,
    last_line,
    read_lines,
    read_spread,
    readable,
)
from mtrl.runs.directory import CONFIG_NAME, EVALUATIONS_NAME, METRICS_NAME, VERSIONS_NAME

Table = Any  # pandas.DataFrame, or a list of dicts where pandas is not installed

_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast
_LARGEST_CONFIG = 1_000_000  # bytes
_DEEPEST_CONFIG = 20
_METRICS = ("vector_step", "env_steps", "wall_s")  # columns of a line of metrics; all other keys are numbers
_IDENTITY = ("run", "label", "method", "seed")
_NUMBERS = ("success", "success_last", "return", "episodes")
# Columns of tidy tables, which are there without rows too.
_OF_EVALUATIONS = (*_IDENTITY, *_METRICS, "final", "task", *_NUMBERS)
_OF_METRICS = (*_IDENTITY, *_METRICS, "name", "task", "other_task", "value")


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read. `metrics` is read from the disk each time, because it can be large."""

    path: Path
    config: Mapping[str, Any]  # config.yaml
    versions: Mapping[str, str]
    evaluations: tuple[Line, ...]  # oldest first
    last_metrics: Line  # the last line of metrics; empty if there is none

    @property
    def metrics(self) -> Iterator[Line]:
        """Lines of metrics.jsonl, oldest first.

        Raises:
            UserError: a line that is not what the schema says.
        """
        return read_lines(self.path / METRICS_NAME)

    def some_metrics(self, most: int) -> Iterator[Line]:
        """At most `most` lines of metrics.jsonl, evenly spread over the vector steps, oldest first.

        Of a longer log these are the first line at or after every 2nd, 4th, ... multiple of the log interval,
        and the last line. Runs of different lengths thus have lines at common steps. A line that is missing
        in one run does not shift its other lines.
        """
        interval = (self.config.get("train") or {}).get("log_interval")
        interval = interval if type(interval) is int and interval > 0 else 1
        last = self.last_metrics.get("vector_step", 0)
        while -(-last // interval) > most:
            interval *= 2
        return read_spread(self.path / METRICS_NAME, interval, last)

    @property
    def method(self) -> str:
        """Name of the gradient combiner; "critic's / actor's" if the networks have different ones."""
        return method_label(self.config)

    @property
    def seed(self) -> int:
        """Seed of everything."""
        return int(self.config["seed"])

    @property
    def steps(self) -> int:
        """Requested length in vector steps."""
        return int(self.config["steps"])

    @property
    def step(self) -> int:
        """Vector steps that are known to be done."""
        return int(self._largest("vector_step"))

    @property
    def seconds(self) -> float:
        """Seconds that its processes have worked."""
        return self._largest("wall_s")

    @property
    def finished(self) -> bool:
        """Whether the final evaluation at the requested length is there."""
        last = self.evaluations[-1] if self.evaluations else {}
        return bool(last.get("final", False)) and int(last["vector_step"]) >= self.steps

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks; a benchmark's name is replaced by its tasks once there is an evaluation."""
        return tuple(self.evaluations[-1]["tasks"] if self.evaluations else self.config["tasks"])

    def _largest(self, key: str) -> float:
        return max(line.get(key) or 0.0 for line in (*self.evaluations, self.last_metrics))


class Results(NamedTuple):
    """Tidy tables: one row per run; per run, evaluation and task; per run, log line and number."""

    runs: Table
    evaluations: Table
    metrics: Table


def load_runs(paths: Iterable[str | Path] | str | Path) -> Results:
    """Read runs, and sweeps (folders of runs), as three tidy tables.

    Each is a pandas DataFrame, or a list of dicts where pandas is not installed; docs/results-schema.md
    describes the columns. Unfinished runs are included; the column `finished` of `runs` tells them apart.

    Raises:
        UserError: a path without a run, or a file that is not what the schema says.
    """
    found = read_runs(paths)
    tables = (
        [_run_row(run) for run in found],
        [row for run in found for row in _evaluation_rows(run)],
        [row for run in found for row in _metric_rows(run)],
    )
    try:
        import pandas
    except ImportError:
        return Results(*tables)
    runs, evaluations, metrics = tables
    return Results(
        pandas.DataFrame(runs),
        pandas.DataFrame(evaluations, columns=list(_OF_EVALUATIONS)).astype({"final": bool}),
        pandas.DataFrame(metrics, columns=list(_OF_METRICS)),
    )


def read_runs(paths: Iterable[str | Path] | str | Path) -> list[Run]:
    """Read all runs at and below `paths`, in the order of their paths, each once.

    Raises:
        UserError: a path without a run, or a file that is not what the schema says.
    """
    if isinstance(paths, str | Path):
        paths = (paths,)
    places: dict[Path, Path] = {}  # resolved -> as given
    for path in map(expand, paths):
        with readable(path):
            below = list(_run_directories(path))
        if not below:
            raise UserError(
                f"'{path}' is not a run directory and holds none: expected {CONFIG_NAME} in it or below, "
                f"found {'none' if path.exists() else 'no such directory'}."
            )
        for place in below:
            places.setdefault(place.resolve(), place)
    return [read_run(place) for place in places.values()]


def read_run(path: Path) -> Run:
    """Read one run directory; a half-written last line, which a killed run leaves, is dropped.

    Raises:
        UserError: no run, or a file that is not what the schema says.
    """
    config_path = path / CONFIG_NAME
    with readable(path):
        if not config_path.is_file():
            raise UserError(f"'{path}' is not a run directory: expected {CONFIG_NAME} in it, found none.")
        evaluations = tuple(read_lines(path / EVALUATIONS_NAME))
        for line in evaluations:
            _check_evaluation(line, evaluations[0], path / EVALUATIONS_NAME)
        config, versions = _config(config_path), _versions(path / VERSIONS_NAME)
        return Run(path, config, versions, evaluations, last_line(path / METRICS_NAME))


def _run_directories(path: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # else an unread run goes unnoticed
            raise error

    seen = set()  # links may lead back to a folder above
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        is_new = (status.st_dev, status.st_ino) not in seen
        seen.add((status.st_dev, status.st_ino))
        if CONFIG_NAME in files and is_new:
            yield Path(folder)
        if CONFIG_NAME in files or not is_new:
            folders.clear()  # nothing in a run directory is another run
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _config(path: Path) -> dict[str, Any]:
    """Read a config.yaml; refuse what no run writes, such as anchors, which can unfold to any size."""
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise UserError(f"{path} is no configuration: it is larger than {_LARGEST_CONFIG:,} bytes.")
        text, depth = path.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text, _YamlLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST_CONFIG:
                reason = "an alias (*name)" if depth <= _DEEPEST_CONFIG else f"{depth} nested levels"
                raise UserError(f"{path} is no configuration that a run wrote: it holds {reason}.")
        config = yaml.load(text, _YamlLoader)
    # The other errors come from bytes that are not UTF-8 and from invalid dates, integers or tags.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(
            f"{path} is not the configuration of a run: expected a mapping, found {config!r:.60}."
        )
    missing = [key for key in ("tasks", "method", "steps", "seed") if key not in config]
    if missing:
        raise UserError(f"{path} is not the configuration of a run: it lacks {', '.join(missing)}.")
    tasks = config["tasks"]
    kinds = {
        "tasks": isinstance(tasks, list) and bool(tasks) and all(isinstance(task, str) for task in tasks),
        "method": isinstance(config["method"], str),
        "steps": type(config["steps"]) is int and 0 <= config["steps"] <= LARGEST_STEP,
        "seed": type(config["seed"]) is int,
    }
    sections = ("env", "eval", "train", "sac", "ppo")
    kinds |= {key: isinstance(config.get(key, {}), dict | None) for key in sections}
    wrong = [key for key, is_right in kinds.items() if not is_right]
    if wrong:
        raise UserError(
            f"{path} is not the configuration of a run: '{wrong[0]}' cannot be {config[wrong[0]]!r:.60}."
        )
    return config


def _versions(path: Path) -> dict[str, str]:
    """Read versions.json; a file that a full disk has emptied counts as missing."""
    text = path.read_bytes() if path.is_file() else b""
    if not text.strip():
        return {}
    try:
        versions = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error}).") from error
    if not isinstance(versions, dict):
        raise UserError(f"{path} is damaged: expected an object, found {versions!r:.60}.")
    return {str(key): str(value) for key, value in versions.items()}


def _check_evaluation(line: Line, first: Line, path: Path) -> None:
    tasks = line.get("tasks")
    place = f"{path}, the evaluation at vector step {line['vector_step']}"
    if (
        not isinstance(tasks, dict)
        or not all(isinstance(values, dict) for values in tasks.values())
        or not tasks
    ):
        raise UserError(f"{place}: expected numbers by task under 'tasks', found {tasks!r:.60}.")
    if tasks.keys() != first["tasks"].keys():
        raise UserError(f"{place} has other tasks than the first: {', '.join(tasks)}.")
    if type(line.get("final", False)) is not bool:
        raise UserError(f"{place}: expected true or false as 'final', found {line['final']!r:.60}.")
    for key in ("success", "success_last", "return"):
        check_number(line.get(f"mean_{key}"), f"{place}, mean_{key}")
        for task, values in tasks.items():
            check_number(values.get(key), f"{place}, {key} of {task}")


def _run_row(run: Run) -> dict[str, Any]:
    last = run.evaluations[-1] if run.evaluations else {}
    return {
        **_identity(run),
        "finished": run.finished,
        "vector_step": run.step,
        "wall_s": run.seconds,
        "mean_success": last.get("mean_success"),
        "mean_success_last": last.get("mean_success_last"),
        "mean_return": last.get("mean_return"),
        **{f"config.{key}": value for key, value in flat(run.config).items()},
        **{f"version.{key}": value for key, value in run.versions.items()},
    }


def _evaluation_rows(run: Run) -> Iterator[dict[str, Any]]:
    for line in run.evaluations:
        stamp = {key: line.get(key) for key in (*_METRICS, "final")}
        for task, values in line["tasks"].items():
            numbers = {key: values.get(key) for key in _NUMBERS}
            yield {**_identity(run), **stamp, "task": task, **numbers}


def _metric_rows(run: Run) -> Iterator[dict[str, Any]]:
    """One row per number: numbers by task have a task, numbers by pair of tasks also the other task."""
    identity = _identity(run)
    for line in run.metrics:
        stamp = {key: line.get(key) for key in _METRICS}
        for name, value in line.items():
            if name in stamp:
                continue
            for task, inner in value.items() if isinstance(value, Mapping) else ((None, value),):
                for other, number in inner.items() if isinstance(inner, Mapping) else ((None, inner),):
                    row = {"name": name, "task": task, "other_task": other, "value": number}
                    yield {**identity, **stamp, **row}


def _identity(run: Run) -> dict[str, Any]:
    return {"run": str(run.path), "label": run.method, "method": run.method, "seed": run.seed}
