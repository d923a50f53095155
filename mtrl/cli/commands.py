"""Command lines of the scripts: flags over a preset over defaults. Imports no torch before training.

`--preset` and `--method` are looked up first; everything is then parsed over the preset's values, with the
chosen method's options as `--method.NAME`.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from mtrl.cli.flags import (
    check_flags,
    flag_values,
    given,
    methods_overview,
    parse,
    peek,
    print_help,
    train_flags,
    wants_help,
)
from mtrl.config.method_options import method_options
from mtrl.config.presets import build_config, load_preset
from mtrl.config.schema import Config, Device
from mtrl.envs.metaworld.tasks import resolve_tasks
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError, unknown_name

_DESCRIPTION = "Train one multi-task SAC agent on Meta-World; --method combines the gradients of its tasks."

_WITH_RESUME = ("--resume", "--steps", "--device", "--allow-version-mismatch", "--no-allow-version-mismatch")

F = TypeVar("F")  # the flags of one script


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ResumeFlags:
    resume: Path
    steps: int | None = None
    device: Device | None = None
    allow_version_mismatch: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EvaluateFlags:
    """Evaluate the newest checkpoint of a run: deterministic policy, fixed goals, success per task."""

    run_dir: tyro.conf.Positional[Path]
    """Run directory that a training script wrote."""
    episodes: int = 50
    """Episodes per task; episode k uses goal k."""
    device: Device = "auto"
    """Device of the networks; auto: CUDA if there is one."""
    allow_version_mismatch: bool = False
    """Accept a checkpoint of another metaworld, mujoco or major version of torch."""
    video: bool = False
    """Also film one episode of each task, into the run's folder videos/; needs the extra [video]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ReportFlags:
    """Compare runs: one HTML page, and its tables (CSV, Markdown, LaTeX) and figures (PNG, SVG) as files."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or folders of them such as a sweep's; all of one protocol."""
    out: Path = Path("report")
    """Folder for report.html, tables/, figures/ and configs/; made if missing."""
    single_task: tuple[Path, ...] = ()
    """Finished runs of one task each, for Delta m: the drop against agents trained on a task alone."""
    measure: Literal["success", "return"] | None = None
    """What is compared; by default success where the suite has one, else the return."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GalleryFlags:
    """Draw every method's trajectories on the toy landscapes of the CAGrad and Nash-MTL papers."""

    methods: tuple[str, ...] = ()
    """Methods to run; none given: all."""
    steps: int = 20_000
    """Steps of Adam."""
    lr: float = 3e-3
    """Learning rate of Adam."""
    long: tuple[str, ...] = ()
    """Methods to run with three times the steps at a third of the learning rate, by default the papers'."""
    out: Path = Path("gallery")
    """Folder for the pictures, final.json and table.md; made if missing."""


def main_train(
    argv: Sequence[str] | None = None, *, preset: str | None = None, tasks: tuple[str, ...] | None = None
) -> int:
    """Run a training script and return its exit code.

    0 done; 1 non-finite numbers; 2 a mistake of the user, with nothing written; 75 environment failure;
    130 and 143 interrupted and terminated.

    Args:
        argv: the arguments; those of the process if None.
        preset: the preset used without `--preset`; None: the dataclass defaults.
        tasks: the tasks used without `--tasks`; None: those of the preset, which must then name some.
    """
    return _exit_code(functools.partial(_train, preset=preset, tasks=tasks), argv)


def main_evaluate(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation script and return its exit code, see `main_train`."""
    return _exit_code(_evaluate, argv)


def main_report(argv: Sequence[str] | None = None) -> int:
    """Run the report script and return its exit code, see `main_train`."""
    return _exit_code(_report, argv)


def main_benchmark(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first argument names and return its exit code, see `main_train`."""
    from mtrl_benchmarks.command import run

    return _exit_code(run, argv)


def main_gallery(argv: Sequence[str] | None = None) -> int:
    """Run the gallery script and return its exit code, see `main_train`."""
    return _exit_code(_gallery, argv)


def _exit_code(run: Callable[[list[str]], int], argv: Sequence[str] | None) -> int:
    try:
        return run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        code, message = 2, f"error: {error}"
    except NonFiniteError as error:
        code, message = 1, f"error: {error}"
    except EnvironmentFailure as error:
        code, message = 75, f"error: {error}"
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    print(message, file=sys.stderr)
    return code


def _train(arguments: list[str], preset: str | None, tasks: tuple[str, ...] | None) -> int:
    flags_given = given(arguments)
    if "--resume" in flags_given and not wants_help(arguments):
        return _resume(arguments)
    preset = peek(arguments, "--preset") or preset
    layers: list[Mapping[str, Any]] = [load_preset(preset)] if preset else []
    if tasks:
        layers.append({"tasks": tasks})
    tasks_known = any("tasks" in layer for layer in layers)
    method = peek(arguments, "--method")
    if method is not None:
        layers.append({"method": method})
    default = train_flags(build_config(*layers), preset)
    if not tasks_known:
        default = dataclasses.replace(default, tasks=tyro.MISSING)
    if wants_help(arguments):
        overview = methods_overview(shutil.get_terminal_size().columns)
        print_help(type(default), default, _DESCRIPTION, overview)
        return 0
    check_flags(arguments, type(default), method_options()[default.method])
    if not tasks_known and "--tasks" not in flags_given:
        raise UserError("no tasks: give --tasks MT10, --tasks reach-v3 push-v3 or a preset that names tasks.")
    flags = parse(type(default), arguments, default)
    config = build_config(flag_values(flags))
    _check_options(config)
    from mtrl.training.run import train

    return train(config, run_dir=flags.run_dir).exit_code


def _resume(arguments: list[str]) -> int:
    for flag in given(arguments):
        if flag not in _WITH_RESUME:
            raise UserError(
                f"--resume continues a run with its own configuration and takes only --steps and --device "
                f"(and --allow-version-mismatch) besides; found {flag}. To change it, start a new run."
            )
    flags = parse(_ResumeFlags, arguments)
    if flags.steps is not None and flags.steps < 1:
        raise UserError(f"--steps must be positive; found {flags.steps}.")
    from mtrl.training.run import resume_training

    return resume_training(
        flags.resume,
        steps=flags.steps,
        device=flags.device,
        allow_version_mismatch=flags.allow_version_mismatch,
    ).exit_code


def _parsed(kind: type[F], arguments: list[str]) -> F | None:
    """Return a script's flags; None if help was asked for, which is printed."""
    if wants_help(arguments):
        print_help(kind)
        return None
    check_flags(arguments, kind)
    flags: F = parse(kind, arguments)
    return flags


def _evaluate(arguments: list[str]) -> int:
    flags = _parsed(_EvaluateFlags, arguments)
    if flags is None:
        return 0
    if flags.episodes < 1:
        raise UserError(f"--episodes must be positive; found {flags.episodes}.")
    from mtrl.training.run import evaluate_run

    evaluate_run(
        flags.run_dir,
        episodes=flags.episodes,
        device=flags.device,
        allow_version_mismatch=flags.allow_version_mismatch,
        video=flags.video,
    )
    return 0


def _report(arguments: list[str]) -> int:
    flags = _parsed(_ReportFlags, arguments)
    if flags is None:
        return 0
    from mtrl.cli.report import report

    return report(
        flags.runs,
        flags.out,
        single_task=flags.single_task,
        measure=flags.measure,
        command=arguments,
    )


def _gallery(arguments: list[str]) -> int:
    flags = _parsed(_GalleryFlags, arguments)
    if flags is None:
        return 0
    if flags.steps < 1 or not flags.lr > 0.0:
        raise UserError(f"--steps and --lr must be positive; found {flags.steps} and {flags.lr}.")
    for name in (*flags.methods, *flags.long):
        if name not in method_options():
            raise UserError(unknown_name("method", name, method_options()))
    from mtrl_gallery.descent import descend, write_table

    runs = []
    for name in flags.methods or method_options():
        scale = 3 if name in flags.long else 1
        try:
            runs.append(descend(name, steps=flags.steps * scale, lr=flags.lr / scale))
        except ValueError as error:
            print(f"{name}: left out. {error}", file=sys.stderr)
        else:
            print(f"{name}: done", file=sys.stderr)
    try:
        print(write_table(runs, flags.out), end="")
        from mtrl_gallery.pictures import draw

        print(*draw(runs, flags.out), sep="\n")
    except ImportError as error:
        raise UserError("the pictures need matplotlib: pip install 'mtrl-torch[report]'.") from error
    except OSError as error:
        raise UserError(f"cannot write to '{flags.out}': {error.strerror}. Choose another --out.") from error
    return 0


def _check_options(config: Config) -> None:
    """Raise UserError for an option out of its range, before anything is started or written."""
    from mtrl.agents.sac.methods import make_combiners

    num_tasks = len(resolve_tasks(config.tasks) if config.suite == "metaworld" else config.tasks)
    try:
        make_combiners(config, num_tasks)
    except ValueError as error:
        raise UserError(f"--method {config.method}: {error}") from error
