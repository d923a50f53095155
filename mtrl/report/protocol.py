"""Which runs may share a table: one protocol for all of it, one configuration for each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtrl.config.presets import INCIDENTAL, MISSING, differences, flat
from mtrl.errors import UserError
from mtrl.report.load import Run

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
_OPTIONS = "method_options."


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
    measured = (*_PROTOCOL, *_INCIDENTAL)
    return {
        key: value
        for key, value in flat(run.config).items()
        if key not in measured and not key.startswith("suite_options.")
    }


def group(runs: Sequence[Run]) -> list[Group]:
    """Return the rows that `runs` make, in the order of their first runs.

    Raises:
        UserError: two protocols among them, or one seed twice in a row; names both runs and the difference.
    """
    _check_one_protocol(runs)
    rows: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        rows.setdefault(_key(configuration(run)), []).append(run)
    configurations = [configuration(row[0]) for row in rows.values()]
    differing = _differing(configurations)
    groups = []
    for row, settings in zip(rows.values(), configurations, strict=True):
        _check_seeds(row)
        ordered = tuple(sorted(row, key=lambda run: run.seed))
        # Figures have no room for options that tell nothing apart: those of other methods differ anyway.
        same = _differing([other for other in configurations if other["method"] == settings["method"]])
        told_apart = {key for key in differing if key in same or not key.startswith(_OPTIONS)}
        options = _words(settings, [key for key in settings if key.startswith(_OPTIONS)])
        label = _label(settings, told_apart - {"method"})
        groups.append(Group(label, row[0].method, options, ordered))
    return groups


def _check_one_protocol(runs: Sequence[Run]) -> None:
    by_evaluations = sorted(runs, key=lambda run: not run.evaluations)
    for run in by_evaluations[1:]:
        found = differences(protocol(by_evaluations[0]), protocol(run))
        if not run.evaluations:
            found.pop("tasks", None)  # only an evaluation spells out what MT10 holds
        if found:
            words = "; ".join(f"{key}: {_text(a)} and {_text(b)}" for key, (a, b) in found.items())
            raise UserError(
                f"runs of different protocols cannot share a table. '{by_evaluations[0].path}' and "
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


def _label(settings: Mapping[str, Any], told_apart: set[str]) -> str:
    """Method, with its options among the keys `told_apart` and then the other settings among them."""
    words = _words(settings, sorted(told_apart, key=lambda key: (not key.startswith(_OPTIONS), key)))
    return f"{settings['method']} ({words})" if words else str(settings["method"])


def _words(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
    shown = {key.removeprefix(_OPTIONS): _text(settings.get(key, MISSING)) for key in keys}
    return ", ".join(f"{key}={value}" for key, value in shown.items())


def _differing(configurations: Sequence[Mapping[str, Any]]) -> set[str]:
    keys = {key for settings in configurations for key in settings}
    return {key for key in keys if len({repr(settings.get(key, MISSING)) for settings in configurations}) > 1}


def _key(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted((key, repr(value)) for key, value in settings.items()))


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        shown = ", ".join(map(str, value[:3]))
        return f"{shown}, ... ({len(value)})" if len(value) > 3 else shown
    return str(value)
