"""Groups runs into the rows of tables and figures, and reads their evaluations as arrays.

All runs of a comparison have one protocol. The runs of a row have one configuration and different seeds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mtrl.config.presets import INCIDENTAL, NOT_RECORDED, differences, flat
from mtrl.errors import UserError
from mtrl.report import stats
from mtrl.report.labels import options, row_labels, text, unique
from mtrl.report.load import Run, read_runs
from mtrl.report.table import plain

Floats = NDArray[np.float64]
A = TypeVar("A")
Measure = Literal["success", "return"]

# What is measured. Runs that differ here cannot share a table.
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
# Settings that do not matter for results: runs of one row may differ in them.
_INCIDENTAL = (
    *INCIDENTAL,
    "seed",
    "tasks",  # the protocol has their names
    "train.log_interval",
    "train.checkpoint_interval",
)
# Versions of the learner and of the machine. All others belong to the simulation and so to the protocol.
_NOT_SIMULATION = (
    "python", "platform", "cpu", "cores", "torch", "numpy", "mtrl", "stable_baselines3", "cuda",
    "cuda_device", "git_commit",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one configuration that differ in their seeds: a row of the tables."""

    label: str  # what differs from the other groups: the method, options, settings
    method: str
    options: str  # of the method, all of them
    runs: tuple[Run, ...]  # by seed

    @property
    def finished(self) -> tuple[Run, ...]:
        """Runs with a final evaluation; only these count."""
        return tuple(run for run in self.runs if run.finished)


class Curves(NamedTuple):
    """Evaluations of R runs at their K common steps."""

    steps: Floats  # [K] vector steps
    seconds: Floats  # [R, K] that each run has worked, without pauses
    scores: Floats  # [R, K, T]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Groups of runs of one protocol: the rows of tables and the lines of figures."""

    groups: tuple[Group, ...]
    tasks: tuple[str, ...]  # T
    measure: Measure  # what a score is
    single_task: dict[str, float]  # task -> mean score of agents trained on it alone
    comparisons: int = 1  # paired differences that the study plans; if the table has more, those
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once(self, key: Any, compute: Callable[[], A]) -> A:
        """Return `compute()`, which is called once for each key: tables and figures need the same numbers."""
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]  # type: ignore[no-any-return]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, row by row."""
        return tuple(run for row in self.groups for run in row.runs)

    @property
    def rows(self) -> tuple[Group, ...]:
        """Groups with a finished run; the others have no final score."""
        return self.once("rows", lambda: tuple(row for row in self.groups if row.finished))

    @property
    def baseline(self) -> Group | None:
        """The row of plain averaging, with which others are compared, if there is exactly one."""
        rows = [row for row in self.rows if row.method == "mean"]
        return rows[0] if len(rows) == 1 and len(self.rows) > 1 else None

    def final(self, row: Group, key: str | None = None) -> Floats:
        """Scores [R, T] of the final evaluations, or another of their numbers (`success_last`, `return`)."""
        name = key or self.measure
        lines = [[run.evaluations[-1]] for run in row.finished]
        return self.once(("final", row, name), lambda: _scores(lines, self.tasks, name)[:, 0])

    def mean(self, row: Group) -> stats.Interval:
        """Mean final score of a row, with an interval over whole runs."""
        return self.once(("mean", row), lambda: stats.bootstrap(stats.mean, self.final(row)))

    def iqm(self, row: Group) -> stats.Interval:
        """Interquartile mean of a row's final scores, with an interval stratified by task."""
        return self.once(("iqm", row), lambda: stats.bootstrap(stats.iqm, self.final(row), unit="task"))

    def improvement(self, row: Group, other: Group) -> stats.Interval:
        """Chance that a run of `row` beats one of `other` on a task."""
        found = self._known.get(("improvement", other, row))
        if found is not None:  # the other half of the matrix is one minus this half
            return stats.Interval(1.0 - found.value, 1.0 - found.high, 1.0 - found.low)
        return self.once(
            ("improvement", row, other), lambda: stats.improvement(self.final(row), self.final(other))
        )

    def best(self, most: int) -> tuple[Group, ...]:
        """Return at most `most` rows, in their order: those with the highest final mean."""
        ranked = sorted(self.rows, key=lambda row: -np.nan_to_num(self.final(row).mean(), nan=-np.inf))
        kept = set(ranked[:most])
        return tuple(row for row in self.rows if row in kept)

    def curves(self, row: Group) -> Curves:
        """Evaluations that all finished runs of a row have."""
        return self.once(("curves", row), lambda: curves(row.finished, self.tasks, self.measure))


def compare(
    paths: Iterable[Path],
    *,
    single_task: Iterable[Path] = (),
    measure: Measure | None = None,
    methods: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    comparisons: int | None = None,
) -> Comparison:
    """Read runs and sweeps and group them.

    Args:
        paths: run directories and folders of them.
        single_task: the same for agents of one task each, for Delta m.
        measure: default: success where the suite has one, else the return.
        methods: methods or labels of the rows that are shown, in this order; default: all.
        labels: method or label -> what it is called in tables and figures.
        comparisons: number of paired differences whose intervals hold together; default: those of the table.

    Raises:
        UserError: no run, no evaluation, runs that cannot share a table (names the difference), or a method
            or label that no row has; fewer comparisons than the table has.
    """
    runs = read_runs(paths)
    if methods:
        groups = group(runs)
        picked = {row: None for name in methods for row in _named(groups, name, "--methods")}
        runs = [run for row in picked for run in row.runs]
    singles = read_runs(single_task) if single_task else []
    flagged = _flagged([*runs, *singles])
    runs, singles = ([_with_failures(run, flagged) for run in read] for read in (runs, singles))
    groups = group(runs)
    evaluated = [run for run in runs if run.evaluations]
    if not evaluated:
        raise UserError(f"no evaluation yet in {len(runs)} run(s), the first is '{runs[0].path}'.")
    has_success = all(_has_success(run) for run in evaluated)
    if measure == "success" and not has_success:
        raise UserError("these runs have no success rates. Use --measure return.")
    chosen = measure or ("success" if has_success else "return")
    baselines = _single_task(singles, evaluated[0], chosen) if singles else {}
    renamed = tuple(_renamed(groups, labels or {}))
    comparison = Comparison(renamed, evaluated[0].tasks, chosen, baselines, comparisons or 1)
    compared = len(comparison.rows) - 1 if comparison.baseline else 0
    if comparisons is not None and comparisons < compared:
        raise UserError(
            f"--comparisons {comparisons}: {compared} rows are compared with `mean`; give {compared} or more."
        )
    return comparison


def protocol(run: Run) -> dict[str, Any]:
    """Return what a run measures: tasks, suite and its options, lengths, evaluations, simulation."""
    config = flat(run.config)
    # Only the length of evaluation episodes counts; training may use another.
    own = config.get("eval.max_episode_steps")
    config["eval.max_episode_steps"] = config.get("env.max_episode_steps") if own is None else own
    chosen = {key: config.get(key, NOT_RECORDED) for key in _PROTOCOL}
    options = {key: value for key, value in config.items() if key.startswith("suite_options.")}
    simulation = {
        f"version of {name}": version for name, version in run.versions.items() if name not in _NOT_SIMULATION
    }
    return {"tasks": run.tasks, **chosen, **options, **simulation}


def configuration(run: Run) -> dict[str, Any]:
    """Return the settings of the learner of a run: agent, method, networks."""
    # Empty and null options of methods are left out: older runs, which lack an option, then match.
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
        UserError: two protocols among them, or two runs of a row with one seed; names both runs.
    """
    _check_one_protocol(runs)
    rows: dict[tuple[Any, ...], list[Run]] = {}
    configurations: list[dict[str, Any]] = []
    for run in runs:
        settings = configuration(run)
        key = tuple(sorted((key, repr(value)) for key, value in settings.items()))
        if key not in rows:
            configurations.append(settings)
        rows.setdefault(key, []).append(run)
    methods = [row[0].method for row in rows.values()]
    labels = row_labels(configurations, methods)
    groups = []
    for row, settings, method, label in zip(rows.values(), configurations, methods, labels, strict=True):
        _check_seeds(row)
        groups.append(Group(label, method, options(settings), tuple(sorted(row, key=lambda run: run.seed))))
    return groups


def curves(runs: Sequence[Run], tasks: Sequence[str], key: str) -> Curves:
    """Return the evaluations at the steps that all `runs` have."""
    by_step = [{line["vector_step"]: line for line in run.evaluations} for run in runs]
    common = sorted(set.intersection(*(set(lines) for lines in by_step)))
    picked = [[lines[step] for step in common] for lines in by_step]
    seconds = [[line.get("wall_s") or np.nan for line in lines] for lines in picked]
    return Curves(np.array(common, float), np.array(seconds, float), _scores(picked, tasks, key))


def _check_one_protocol(runs: Sequence[Run]) -> None:
    first, *others = sorted(runs, key=lambda run: not run.evaluations)  # runs with evaluations first
    expected = protocol(first)
    for run in others:
        found = differences(expected, protocol(run))
        if not run.evaluations:
            found.pop("tasks", None)  # only an evaluation names the tasks of a benchmark such as MT10
        if found:
            words = "; ".join(f"{key}: {text(a)} and {text(b)}" for key, (a, b) in found.items())
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
                f"{run.seed}: counting it twice would make intervals too narrow. Leave one out."
            )
        seen[run.seed] = run


def _named(groups: Sequence[Group], name: str, flag: str) -> list[Group]:
    found = [row for row in groups if name in (row.label, row.method)]
    if not found:
        known = ", ".join(dict.fromkeys(name for row in groups for name in (row.method, row.label)))
        raise UserError(f"{flag}: no row is called '{name}'. These runs have {known}.")
    return found


def _renamed(groups: Sequence[Group], labels: Mapping[str, str]) -> list[Group]:
    for name in labels:
        rows = _named(groups, name, "--labels")
        if not any(name == row.label or row.label.startswith(plain(name)) for row in rows):
            raise UserError(
                f"--labels: '{name}' is in no label, because all rows have that method. They are called "
                f"{', '.join(row.label for row in rows)}."
            )
    names = []
    for row in groups:
        method = plain(row.method)
        name = row.label
        if row.method in labels and name.startswith(method):
            name = labels[row.method] + name.removeprefix(method)
        names.append(labels.get(row.label, name))
    return [
        Group(name, row.method, row.options, row.runs)
        for row, name in zip(groups, unique(list(map(plain, names))), strict=True)
    ]


def _scores(lines: Sequence[Sequence[Any]], tasks: Sequence[str], key: str) -> Floats:
    values = [[[line["tasks"][task].get(key) for task in tasks] for line in row] for row in lines]
    return np.array(values, dtype=np.float64)  # null, which stands for non-finite numbers, becomes NaN


def _flagged(runs: Iterable[Run]) -> frozenset[str]:
    """Return the tasks that have given a success flag in an evaluation of one of these runs."""
    return frozenset(
        task
        for run in runs
        for line in run.evaluations
        for task, values in line["tasks"].items()
        if values.get("success") is not None
    )


def _with_failures(run: Run, flagged: frozenset[str]) -> Run:
    """Return the run with success 0 where a task that knows success gave no flag.

    Some environments give the flag only where an episode is solved, so an evaluation without one solved none.
    """

    def filled(task: str, values: Mapping[str, Any]) -> dict[str, Any]:
        failed = task in flagged and values.get("success") is None
        return {**values, "success": 0.0, "success_last": 0.0} if failed else dict(values)

    if all(v.get("success") is not None for line in run.evaluations for v in line["tasks"].values()):
        return run
    lines = tuple(
        {**line, "tasks": {task: filled(task, values) for task, values in line["tasks"].items()}}
        for line in run.evaluations
    )
    return replace(run, evaluations=lines)


def _has_success(run: Run) -> bool:
    return all(values.get("success") is not None for values in run.evaluations[-1]["tasks"].values())


def _single_task(runs: Sequence[Run], multi: Run, key: str) -> dict[str, float]:
    found: dict[str, list[Run]] = {}
    expected = protocol(multi)
    for run in runs:
        apart = differences(expected, protocol(run))
        apart.pop("tasks", None)
        if not run.finished or len(run.tasks) != 1 or apart:
            reason = "is unfinished" if not run.finished else f"has tasks {', '.join(run.tasks)}"
            if apart:
                reason = "differs in " + "; ".join(f"{name}: {a} and {b}" for name, (a, b) in apart.items())
            raise UserError(f"'{run.path}' is not a single-task counterpart of '{multi.path}': it {reason}.")
        found.setdefault(run.tasks[0], []).append(run)
    if missing := [task for task in multi.tasks if task not in found]:
        raise UserError(f"Delta m needs a single-task run of every task; none of {', '.join(missing)}.")
    for task, own in found.items():
        if len(rows := group(own)) > 1:
            places = " and ".join(f"'{row.runs[0].path}' ({row.label})" for row in rows[:2])
            raise UserError(f"{task} has single-task runs of several configurations: {places}. Give one.")
    lines = {task: [[run.evaluations[-1]] for run in own] for task, own in found.items()}
    return {task: float(_scores(own, (task,), key).mean()) for task, own in lines.items()}
