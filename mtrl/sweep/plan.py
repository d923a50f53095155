"""The trials of a sweep, their resources and their progress. Does not use Ray."""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mtrl.config.files import file_name
from mtrl.config.labels import method_label
from mtrl.config.presets import build_config, nested
from mtrl.config.schema import Config
from mtrl.config.values import YamlLoader
from mtrl.errors import OtherConfiguration, UserError
from mtrl.report.load import read_run
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.directory import CONFIG_NAME, LOG_NAMES, has_checkpoint
from mtrl.training.resolve import bound_to_run, check_same_run, resolve, why_unread

_ALL = "method_options."  # begins the key of an option of every method


class Trial(NamedTuple):
    """One run of a sweep."""

    name: str  # METHOD[,KEY=VALUE...]/seedN, its folder below the sweep's
    config: Config
    path: Path


class Resources(NamedTuple):
    """CPUs and GPUs of each trial, and how many trials run at once at most; None: as many as fit."""

    cpus: float
    gpus: float
    parallel: int | None


class State(NamedTuple):
    """Names of the trials by their state."""

    waiting: tuple[str, ...]
    running: tuple[str, ...]
    done: tuple[str, ...]
    failed: Mapping[str, str]  # with the reason


class Progress(NamedTuple):
    """Progress of a trial according to its files."""

    step: int
    finished: bool
    seconds: float  # working time
    success: float | None  # at its last evaluation


def plan(
    layers: Sequence[Mapping[str, Any]],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    out: Path,
) -> list[Trial]:
    """Return the trials, all seeds of one setting together.

    Args:
        layers: of the configuration, from weak to strong (`build_config`).
        methods: names of methods.
        seeds: of each setting.
        settings: dotted key -> value for all trials; `cagrad.c` is an option of that method only, and wins
            over `method_options.c`, the same option of all methods.
        grid: dotted key -> values; every combination of values is a setting with its own folder.
        out: the sweep's folder.

    Raises:
        UserError: a wrong setting, a key in both `settings` and `grid`, or a trial's folder that holds
            another run or a longer one.
    """
    for key in settings.keys() & grid.keys():
        raise UserError(f"{key} is in --set and in --grid. Give it in one of them.")
    for key in (*settings, *grid):
        if key in ("seed", "method", "tasks"):
            raise UserError(
                "seed is chosen by --seeds and --first-seed, method by --methods, tasks by --tasks; found "
                f"{key} in --set or --grid. Leave it out."
            )
    trials = []
    fixed = {key: [value] for key, value in settings.items()}
    for method in methods:
        own = [key.removeprefix(f"{method}.") for key in (*settings, *grid) if key.startswith(f"{method}.")]
        # Options of other methods, and options of all methods where this one has its own.
        left_out = tuple(f"{other}." for other in methods if other != method), {f"{_ALL}{key}" for key in own}
        (constants,) = _points(fixed, *left_out)
        for values in _points(grid, *left_out):
            # The folder names a key even if the grid has one value: more values can be added later.
            point = _layer(constants | values, method)
            for seed in seeds:
                config = resolve(build_config(*layers, {"method": method}, point, {"seed": seed}))
                grown = {"critic_method", "actor_method"} & set(values)  # then the folder names them anyway
                folder = _folder(method, values, method if grown else method_label(vars(config)))
                name = f"{folder}/seed{seed}"
                trials.append(Trial(name, config, out / name))
    for key in (*settings, *grid):
        reasons = [why_unread(trial.config, key) for trial in trials]
        if all(reasons):
            raise UserError(f"{key} {reasons[0]}; found it in --set or --grid. Leave it out.")
    doubled = {name for name, count in Counter(trial.name for trial in trials).items() if count > 1}
    if doubled:
        raise UserError(f"the sweep names a run twice: {', '.join(sorted(doubled))}. Give each value once.")
    for trial in trials:
        if (trial.path / CONFIG_NAME).is_file():
            check_same_run(trial.config, trial.path)  # now, not when the trial starts hours later
            if trial.config.network.identity_file is not None and has_checkpoint(trial.path):
                bound = bound_to_run(trial.config)  # with what the file holds
                try:
                    load_checkpoint(trial.path, parts=(), config=bound, allow_version_mismatch=True)
                except OtherConfiguration:
                    raise
                except UserError:
                    pass  # damaged checkpoints: this trial alone fails, once it starts
            done = progress(trial).step
            if done > trial.config.steps:
                raise UserError(
                    f"'{trial.path}' has done {done:,} vector steps; found steps={trial.config.steps:,}. "
                    "Give at least as many, or another --out."
                )
    return trials


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Return the values of `KEY=VALUE`, read as YAML. Raises UserError as `parse_grid`."""
    found = parse_grid(texts, "--set")
    several = [key for key, values in found.items() if len(values) > 1]
    if several:
        raise UserError(
            f"--set takes one value per key; found several for {several[0]}. To try all, use --grid."
        )
    return {key: values[0] for key, values in found.items()}


def parse_grid(texts: Sequence[str], flag: str = "--grid") -> dict[str, list[Any]]:
    """Return the values of `KEY=VALUE[,VALUE...]`, read as YAML; a list is written in brackets.

    Raises:
        UserError: another form, or a key twice.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        try:
            parsed = yaml.load(f"[{values}]", YamlLoader)
        except yaml.YAMLError:
            parsed = None
        if not equals or not key or not parsed:
            raise UserError(f"{flag} takes KEY=VALUE[,VALUE...], such as sac.gamma=0.99; found '{text}'.")
        if key in grid:
            raise UserError(f"{flag} names {key} twice: write all its values after one '='.")
        grid[key] = parsed
    return grid


def progress(trial: Trial) -> Progress:
    """Return the progress of a trial; zero if it has not begun or its files cannot be read.

    Files are read again only after a change: a sweep asks for the progress of all trials every few seconds.
    """
    stamp = trial.config.steps, *(_stamp(trial.path / name) for name in (CONFIG_NAME, *LOG_NAMES))
    known = _known.get(trial.path)
    if known is None or known[0] != stamp:
        known = _known[trial.path] = stamp, _read_progress(trial)
    return known[1]


_known: dict[Path, tuple[tuple[object, ...], Progress]] = {}  # run directory -> stamp of its files, progress


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _read_progress(trial: Trial) -> Progress:
    try:
        run = read_run(trial.path)
    except UserError:
        return Progress(0, finished=False, seconds=0.0, success=None)
    success = run.evaluations[-1].get("mean_success") if run.evaluations else None
    # If the plan is longer than the run was, the trial is to be extended.
    finished = run.finished and run.step >= trial.config.steps
    return Progress(run.step, finished, run.seconds, success)


def _points(
    grid: Mapping[str, Sequence[Any]], beginnings: tuple[str, ...], names: Collection[str]
) -> Iterator[dict[str, Any]]:
    """Yield every combination of values, leaving out keys in `names` and keys with these `beginnings`."""
    own = {key: values for key, values in grid.items() if not key.startswith(beginnings) and key not in names}
    for values in itertools.product(*own.values()):
        yield dict(zip(own, values, strict=True))


def _layer(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Return settings as one layer; in several, a layer with a plug-in's name would drop earlier options."""
    beginning = f"{method}."
    own = {key: value for key, value in settings.items() if key.startswith(beginning)}
    of_all = {key: value for key, value in settings.items() if key not in own}
    return nested(of_all, {_ALL + key.removeprefix(beginning): value for key, value in own.items()})


def _folder(method: str, shown: Mapping[str, Any], label: str) -> str:
    words = [label, *(f"{key.removeprefix(f'{method}.')}={value}" for key, value in shown.items())]
    return file_name(",".join(words), longest=200)
