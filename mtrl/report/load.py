"""Runs as data: what a run directory holds, and tidy tables of many. docs/results-schema.md has the columns.

Files are read by their documented schema and config.yaml as plain YAML: the classes that a run was made with
(a user's own combiner, suite or network) are not needed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mtrl.config.labels import method_label
from mtrl.config.presets import flat
from mtrl.errors import UserError
from mtrl.runs.directory import CONFIG_NAME, EVALUATIONS_NAME, METRICS_NAME, VERSIONS_NAME

Line = Mapping[str, Any]  # one line of a .jsonl file
Table = Any  # pandas.DataFrame, or a list of dicts where pandas is not installed


class Run(NamedTuple):
    """A run directory, read."""

    path: Path
    config: Mapping[str, Any]  # config.yaml
    versions: Mapping[str, str]
    evaluations: tuple[Line, ...]  # oldest first
    metrics: tuple[Line, ...]  # oldest first

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
        """Length that was asked for, in vector steps."""
        return int(self.config["steps"])

    @property
    def step(self) -> int:
        """Vector steps that are known to be done."""
        return max((int(line["vector_step"]) for line in (*self.evaluations, *self.metrics)), default=0)

    @property
    def seconds(self) -> float:
        """Seconds that its processes have worked."""
        return max((line.get("wall_s") or 0.0 for line in (*self.evaluations, *self.metrics)), default=0.0)

    @property
    def finished(self) -> bool:
        """Whether the final evaluation is there, at the length that was asked for."""
        last = self.evaluations[-1] if self.evaluations else {}
        return bool(last.get("final", False)) and int(last["vector_step"]) >= self.steps

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, those of a benchmark spelt out once there is an evaluation."""
        if self.evaluations:
            return tuple(self.evaluations[-1]["tasks"])
        return tuple(self.config["tasks"])


class Results(NamedTuple):
    """Tidy tables: one row per run; per run, evaluation and task; per run, log line and number."""

    runs: Table
    evaluations: Table
    metrics: Table


def load_runs(paths: Iterable[str | Path] | str | Path) -> Results:
    """Read runs, and sweeps (folders of runs), as three tidy tables.

    Each is a pandas DataFrame, or a list of dicts where pandas is not installed; docs/results-schema.md
    describes the columns. Unfinished runs are included: `runs.finished` tells.

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
    return Results(*(pandas.DataFrame(rows) for rows in tables))


def read_runs(paths: Iterable[str | Path] | str | Path) -> list[Run]:
    """Read all runs at and below `paths`, in the order of their paths, each once.

    Raises:
        UserError: a path without a run, or a file that is not what the schema says.
    """
    if isinstance(paths, str | Path):
        paths = (paths,)
    places: dict[Path, Path] = {}  # resolved -> as given
    for path in map(Path, paths):
        below = list(_run_directories(path.expanduser()))
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
    if not config_path.is_file():
        raise UserError(f"'{path}' is not a run directory: expected {CONFIG_NAME} in it, found none.")
    try:
        config = yaml.safe_load(config_path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{config_path} is not valid YAML: {' '.join(str(error).split())}") from error
    missing = [key for key in ("tasks", "method", "steps", "seed") if key not in (config or {})]
    if missing:
        raise UserError(f"{config_path} is not the configuration of a run: it lacks {', '.join(missing)}.")
    versions_path = path / VERSIONS_NAME
    versions = json.loads(versions_path.read_text(encoding="utf-8")) if versions_path.is_file() else {}
    lines = (_lines(path / name) for name in (EVALUATIONS_NAME, METRICS_NAME))
    return Run(path, config, versions, *lines)


def _run_directories(path: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(path, followlinks=True):
        if CONFIG_NAME in files:
            folders.clear()  # nothing in a run directory is another run
            yield Path(folder)
        else:
            folders[:] = sorted(name for name in folders if not name.startswith("."))


def _lines(path: Path) -> tuple[Line, ...]:
    if not path.is_file():
        return ()
    raw = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if raw and not raw[-1].endswith("\n"):
        raw.pop()
    lines = []
    for number, text in enumerate(raw, start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path} is damaged: line {number} is not JSON ({error}).") from error
        if not isinstance(line, dict) or "vector_step" not in line:
            raise UserError(f"{path}, line {number}: expected an object with 'vector_step', found {text:.60}")
        lines.append(line)
    return tuple(lines)


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
        stamp = {key: line.get(key) for key in ("vector_step", "env_steps", "wall_s", "final")}
        for task, values in line["tasks"].items():
            numbers = {key: values.get(key) for key in ("success", "success_last", "return", "episodes")}
            yield {**_identity(run), **stamp, "task": task, **numbers}


def _metric_rows(run: Run) -> Iterator[dict[str, Any]]:
    """One row per number: nested groups have a task, matrices of tasks also the other task."""
    for line in run.metrics:
        stamp = {key: line.get(key) for key in ("vector_step", "env_steps", "wall_s")}
        for name, value in line.items():
            if name in stamp:
                continue
            for task, inner in value.items() if isinstance(value, Mapping) else ((None, value),):
                for other, number in inner.items() if isinstance(inner, Mapping) else ((None, inner),):
                    row = {"name": name, "task": task, "other_task": other, "value": number}
                    yield {**_identity(run), **stamp, **row}


def _identity(run: Run) -> dict[str, Any]:
    return {"run": str(run.path), "label": run.method, "method": run.method, "seed": run.seed}
