"""`mtrl-sweep`: train methods x seeds x a grid of settings, and retry trials that broke."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

from pydantic import Field

from mtrl.cli import command, importing
from mtrl.cli.flags import fields_of, given, parse_command
from mtrl.config.files import expand
from mtrl.config.labels import tasks_folder
from mtrl.config.presets import load_preset
from mtrl.config.schema import Config
from mtrl.config.values import settings
from mtrl.errors import UserError

if TYPE_CHECKING:
    from mtrl.sweep.plan import State

_Count = Annotated[int, Field(gt=0)]
# Flags of mtrl-train, and sections of them, whose key is another.
_KEYS = {"network": "network.architecture", "method.critic": "critic_method", "method.actor": "actor_method"}
_SECTIONS = {"suite": "suite_options", "method": "METHOD"}


@settings("--")
class _Flags:
    """Train methods x seeds x settings as ordinary runs, on this machine or on a Ray cluster.

    The same command continues a sweep that was interrupted; finished trials are not run again.
    """

    methods: tuple[str, ...] = ()
    """Gradient combiners to train with."""
    seeds: _Count = 5
    """Number of seeds of each setting."""
    first_seed: Annotated[int, Field(ge=0)] = 0
    """The smallest seed; the others follow it."""
    tasks: tuple[str, ...] = ()
    """One benchmark (MT10) or task names; by default the tasks of the preset."""
    preset: str | None = None
    """Values to start from, as for mtrl-train."""
    set: tuple[str, ...] = ()
    """Settings of all trials as KEY=VALUE: steps=200_000; cagrad.c=.4 sets an option of one method."""
    grid: tuple[str, ...] = ()
    """Settings to vary as KEY=VALUE[,VALUE...], in every combination: sac.gamma=.98,.99."""
    out: str | None = None
    """Folder of the sweep, new or to be continued. Default: runs/TASKS-sweep."""
    parallel: _Count | None = None
    """Maximum number of trials at once; by default as many as fit."""
    cpus_per_trial: Annotated[float, Field(ge=1e-4)] = 2.0
    """Cores that Ray reserves for a trial: one learns while the others step the environments."""
    gpus_per_trial: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray reserves for a trial; below 1, trials share a GPU."""
    retries: Annotated[int, Field(ge=0)] = 3
    """How often a trial is tried again when its worker, node or environments break."""
    address: str | None = None
    """Address of a running Ray cluster; by default this machine."""
    dry_run: bool = False
    """Print the plan and its cost, train nothing."""


@command
def main(arguments: list[str]) -> int:
    """Run a sweep; return 0 if all trials have finished, 1 if some have failed, else as `mtrl-train`."""
    _refuse_settings(arguments)
    flags = parse_command(_Flags, arguments)
    gpus = flags.gpus_per_trial
    if 0 < gpus < 1e-4 or (gpus > 1 and not gpus.is_integer()):  # Ray's rules
        raise UserError(
            f"--gpus-per-trial must be a whole number or a part of one GPU, at least .0001; found {gpus:g}."
        )
    if not flags.methods:
        raise UserError("no methods: give for instance --methods mean cagrad.")
    layer = load_preset(flags.preset) if flags.preset else {}
    tasks = flags.tasks or layer.get("tasks", ())
    if not tasks:
        raise UserError("no tasks: give --tasks MT10, --tasks reach-v3 push-v3 or a preset that names tasks.")
    out = expand(flags.out or f"runs/{tasks_folder(tasks)}-sweep")
    seeds = range(flags.first_seed, flags.first_seed + flags.seeds)
    with importing():
        from mtrl.sweep.plan import Resources, State, parse_grid, parse_settings, plan, progress
        from mtrl.sweep.show import Watch, show_plan

    trials = plan(
        [layer, {"tasks": tuple(tasks)}],
        methods=flags.methods,
        seeds=seeds,
        settings=parse_settings(flags.set),
        grid=parse_grid(flags.grid),
        out=out,
    )
    resources = Resources(flags.cpus_per_trial, flags.gpus_per_trial, flags.parallel)
    show_plan(trials, resources)
    if flags.dry_run:
        return 0
    if all(progress(trial).finished for trial in trials):
        return _end(State((), (), tuple(trial.name for trial in trials), {}), out)
    from mtrl.sweep import driver

    try:
        with driver.raising_on_signals():
            driver.connect(flags.address, resources)
            with Watch(trials) as watch:
                state = driver.run(trials, out, resources, retries=flags.retries, watch=watch)
    except KeyboardInterrupt as error:
        _say("Running trials have been told to save. The same command continues the sweep.", file=sys.stderr)
        if isinstance(error, driver.Stopped):
            _say(error, file=sys.stderr)
            return error.exit_code
        raise
    return _end(state, out)


def _refuse_settings(arguments: Sequence[str]) -> None:
    """Raise a UserError for a flag of mtrl-train that is no flag of a sweep."""
    own = {option.name for option in fields_of(_Flags)}
    of_runs = {option.name for option in fields_of(Config)}
    for flag in given(arguments):
        key = flag.removeprefix("--").replace("-", "_")
        name, dot, option = key.partition(".")
        key = _KEYS.get(key) or _dotted_key(name, option)
        # For --method and --seed "Did you mean" says enough.
        if name in of_runs - own and (dot or f"{name}s" not in own):
            raise UserError(
                f"{flag} is a setting of the trials; a sweep takes it as --set {key}=VALUE, or as "
                f"--grid {key}=VALUE,VALUE to compare values."
            )


def _dotted_key(name: str, option: str) -> str:
    """Return the key of a flag `--name.option` of mtrl-train."""
    network, _, rest = option.partition(".")
    if name == "method" and rest and network in ("critic", "actor"):
        name, option = f"{network}_method_options", rest
    *bases, last = option.split(".")
    inner = ("base_options" if base == "base" else base for base in bases)
    return ".".join(
        filter(None, (_SECTIONS.get(name, name) if option else name, *inner, last.removeprefix("no_")))
    )


def _say(text: object, file: TextIO | None = None) -> None:
    with importing():
        from mtrl.runs.console import ignore_output_errors
    with ignore_output_errors():
        print(text, file=file, flush=True)


def _end(state: State, out: Path) -> int:
    _say(f"{len(state.done)} trial(s) finished: mtrl-report {shlex.quote(str(out))}")
    for name, reason in state.failed.items():
        _say(f"{name} failed: {reason}", file=sys.stderr)
    return 1 if state.failed else 0
