"""Which runs share a table, its rows, and their evaluations as arrays: what tables and figures are made of.

All of a comparison has one protocol; the runs of a row have one configuration and differ in their seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtrl.config.presets import INCIDENTAL, MISSING, differences, flat
from mtrl.errors import UserError
from mtrl.report.load import Run, read_runs

Floats = NDArray[np.float64]
Measure = Literal["success", "return"]

# What is measured. Runs that differ here answer different questions, and no table holds both.
_PROTOCOL = (
    "suite",
    "env.envs_per_task",
    "env.num_goals",
    "eval.max_episode_steps",
    "steps",
    "eval.interval",
    "eval.episodes_per_task",
    "eval.final_episodes_per_task",
)
# What a run may differ in without being another one in a table: its number, how often it is logged and kept.
_INCIDENTAL = (
    *INCIDENTAL,
    "seed",
    "tasks",  # the spelt-out names are in the protocol
    "train.log_interval",
    "train.checkpoint_interval",
)
# Versions of the learner and of the machine; all others belong to the simulation.
_NOT_SIMULATION = (
    "python", "platform", "cpu", "cores", "torch", "numpy", "mtrl", "stable_baselines3", "cuda",
    "cuda_device", "git_commit",
)  # fmt: skip
_METHODS = ("method", "critic_method", "actor_method")
_OPTIONS = tuple(f"{key}_options." for key in _METHODS)


class Group(NamedTuple):
    """Runs of one configuration that differ in their seeds: a row of the tables."""

    label: str  # method, and what tells it from the other groups
    method: str
    options: str  # of the method, all of them
    runs: tuple[Run, ...]  # by seed

    @property
    def finished(self) -> tuple[Run, ...]:
        """Those with a final evaluation; only they are pooled."""
        return tuple(run for run in self.runs if run.finished)


class Curves(NamedTuple):
    """Evaluations of the finished runs of a group, R runs at K common steps."""

    steps: Floats  # [K] vector steps
    seconds: Floats  # [R, K] since the start of each run
    scores: Floats  # [R, K, T]


class Comparison(NamedTuple):
    """Groups of runs of one protocol; the tables' rows and the figures' colours."""

    groups: tuple[Group, ...]
    tasks: tuple[str, ...]  # T
    measure: Measure  # what a score is
    single_task: dict[str, float]  # task -> mean score of agents that were trained on it alone

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, row by row."""
        return tuple(run for row in self.groups for run in row.runs)

    @property
    def rows(self) -> tuple[Group, ...]:
        """Groups with a finished run: the others have no final score."""
        return tuple(row for row in self.groups if row.finished)

    @property
    def baseline(self) -> Group | None:
        """The plain mean of gradients, which others are compared with, if exactly one row is that."""
        rows = [row for row in self.rows if row.method == "mean"]
        return rows[0] if len(rows) == 1 and len(self.rows) > 1 else None

    def final(self, row: Group, key: str | None = None) -> Floats:
        """Scores [R, T] of the final evaluations, or another number of theirs (`success_last`, `return`)."""
        return _scores([[run.evaluations[-1]] for run in row.finished], self.tasks, key or self.measure)[:, 0]

    def curves(self, row: Group) -> Curves:
        """Evaluations that all finished runs of a row have."""
        return curves(row.finished, self.tasks, self.measure)


def compare(
    paths: Iterable[Path], *, single_task: Iterable[Path] = (), measure: Measure | None = None
) -> Comparison:
    """Read runs and sweeps and group them.

    Args:
        paths: run directories and folders of them.
        single_task: the same for agents of one task each, whose scores Delta m is taken against.
        measure: success where the suite has one, else the return.

    Raises:
        UserError: no run, no evaluation anywhere, or runs that cannot share a table (names the difference).
    """
    runs = read_runs(paths)
    evaluated = [run for run in runs if run.evaluations]
    if not evaluated:
        raise UserError(f"no evaluation yet in {len(runs)} run(s), the first is '{runs[0].path}'.")
    groups = tuple(group(runs))
    has_success = all(_has_success(run) for run in evaluated)
    if measure == "success" and not has_success:
        raise UserError("these runs have no success rates. Use --measure return.")
    chosen = measure or ("success" if has_success else "return")
    baselines = _single_task(read_runs(single_task), evaluated[0], chosen) if single_task else {}
    return Comparison(groups, evaluated[0].tasks, chosen, baselines)


def protocol(run: Run) -> dict[str, Any]:
    """Return what is measured in a run: tasks, suite and its options, lengths, evaluations, simulation."""
    config = flat(run.config)
    # What is measured are the evaluation's episodes; those of training are the learner's affair.
    own = config.get("eval.max_episode_steps")
    config["eval.max_episode_steps"] = config.get("env.max_episode_steps") if own is None else own
    chosen = {key: config.get(key, MISSING) for key in _PROTOCOL}
    options = {key: value for key, value in config.items() if key.startswith("suite_options.")}
    simulation = {
        f"version of {name}": version for name, version in run.versions.items() if name not in _NOT_SIMULATION
    }
    return {"tasks": run.tasks, **chosen, **options, **simulation}


def configuration(run: Run) -> dict[str, Any]:
    """Return what learns in a run: agent, method, networks and all their numbers."""
    # A method's option that is not set, empty or null, says as much as a run without that option.
    measured = (*_PROTOCOL, *_INCIDENTAL)
    return {
        key: value
        for key, value in flat(run.config).items()
        if key not in measured and not key.startswith("suite_options.")
        if "method_options." not in key or value not in ((), None)
    }


def group(runs: Sequence[Run]) -> list[Group]:
    """Return the rows that `runs` make, in the order of their first runs.

    Raises:
        UserError: two protocols among them, or one seed twice in a row; names both runs and the difference.
    """
    _check_one_protocol(runs)
    rows: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        key = tuple(sorted((key, repr(value)) for key, value in configuration(run).items()))
        rows.setdefault(key, []).append(run)
    configurations = [configuration(row[0]) for row in rows.values()]
    differing = _differing(configurations)
    groups = []
    labels = [row[0].method for row in rows.values()]
    for row, settings, method in zip(rows.values(), configurations, labels, strict=True):
        _check_seeds(row)
        ordered = tuple(sorted(row, key=lambda run: run.seed))
        # Figures have no room for options that tell nothing apart: those of other methods differ anyway.
        same = _differing([own for own, label in zip(configurations, labels, strict=True) if label == method])
        shown = {key for key in differing if key in same or not key.startswith((*_OPTIONS, *_METHODS))}
        words = _words(settings, sorted(shown, key=lambda key: (not key.startswith(_OPTIONS), key)))
        options = _words(settings, [key for key in settings if key.startswith(_OPTIONS)])
        groups.append(Group(f"{method} ({words})" if words else method, method, options, ordered))
    return groups


def curves(runs: Sequence[Run], tasks: Sequence[str], key: str) -> Curves:
    """Return the evaluations at the steps that all `runs` have: a longer run shares its beginning."""
    by_step = [{line["vector_step"]: line for line in run.evaluations} for run in runs]
    common = sorted(set.intersection(*(set(lines) for lines in by_step)))
    picked = [[lines[step] for step in common] for lines in by_step]
    seconds = [[line.get("wall_s") or np.nan for line in lines] for lines in picked]
    return Curves(np.array(common, float), np.array(seconds, float), _scores(picked, tasks, key))


def _check_one_protocol(runs: Sequence[Run]) -> None:
    first, *others = sorted(runs, key=lambda run: not run.evaluations)  # those with evaluations first
    for run in others:
        found = differences(protocol(first), protocol(run))
        if not run.evaluations:
            found.pop("tasks", None)  # only an evaluation spells out what MT10 holds
        if found:
            words = "; ".join(f"{key}: {_text(a)} and {_text(b)}" for key, (a, b) in found.items())
            raise UserError(
                f"runs of different protocols cannot share a table. '{first.path}' and "
                f"'{run.path}' differ in {words}. Report them separately."
            )


def _check_seeds(runs: Sequence[Run]) -> None:
    seen: dict[int, Run] = {}
    for run in runs:
        if run.seed in seen:
            raise UserError(
                f"'{seen[run.seed].path}' and '{run.path}' are the same configuration with the same seed "
                f"{run.seed}: counted twice they would narrow the intervals. Leave one out."
            )
        seen[run.seed] = run


def _words(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    # As the flags are called: c=0.4 for `--method.c`, critic.c=0.4 for `--method.critic.c`.
    short = {key: key.replace("_method_options", "").removeprefix("method_options.") for key in keys}
    shown = {short[key]: _text(settings.get(key, MISSING)) for key in keys}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _differing(configurations: Sequence[Mapping[str, Any]]) -> set[str]:
    keys = {key for settings in configurations for key in settings}
    return {key for key in keys if len({repr(settings.get(key, MISSING)) for settings in configurations}) > 1}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        shown = ", ".join(map(str, value[:3]))
        return f"{shown}, ... ({len(value)})" if len(value) > 3 else shown
    return str(value)


def _scores(lines: Sequence[Sequence[Any]], tasks: Sequence[str], key: str) -> Floats:
    values = [[[line["tasks"][task].get(key) for task in tasks] for line in row] for row in lines]
    return np.array(values, dtype=np.float64)  # null, a number that was not finite, becomes NaN


def _has_success(run: Run) -> bool:
    return all(values.get("success") is not None for values in run.evaluations[-1]["tasks"].values())


def _single_task(runs: Sequence[Run], multi: Run, key: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for run in runs:
        apart = differences(protocol(multi), protocol(run))
        apart.pop("tasks", None)
        if not run.finished or len(run.tasks) != 1 or apart:
            reason = "is unfinished" if not run.finished else f"has tasks {', '.join(run.tasks)}"
            if apart:
                reason = "differs in " + "; ".join(f"{name}: {a} and {b}" for name, (a, b) in apart.items())
            raise UserError(f"'{run.path}' is no single-task counterpart of '{multi.path}': it {reason}.")
        found.setdefault(run.tasks[0], []).append(float(run.evaluations[-1]["tasks"][run.tasks[0]][key]))
    missing = [task for task in multi.tasks if task not in found]
    if missing:
        raise UserError(f"Delta m needs a single-task run of every task; none of {', '.join(missing)}.")
    return {task: float(np.mean(values)) for task, values in found.items()}
