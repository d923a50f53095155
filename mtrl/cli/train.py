"""`mtrl-train`: flags over a preset over defaults; start a run or resume one.

Which flags there are depends on the plug-ins that are chosen (`--method cagrad` has `--method.c`), so their
names are looked up first; everything is then parsed over the preset's values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mtrl.cli import command
from mtrl.cli.flags import (
    Flag,
    Group,
    fields_of,
    given,
    option_flag,
    parse,
    parse_command,
    peek,
    print_help,
    wants_help,
)
from mtrl.config.presets import build_config, config_text, load_preset, owner_of, preset_names
from mtrl.config.schema import Config, Device
from mtrl.config.values import settings
from mtrl.errors import UserError
from mtrl.registry import Registry

_DESCRIPTION = (
    "Train one multi-task agent; --method combines the gradients of its tasks. `--method NAME --help` shows "
    "that method's options, and so do --suite and --network.architecture."
)
# Flags of keys whose own name would not be found: all that is about methods begins with --method.
_FLAGS = {"critic_method": "method.critic", "actor_method": "method.actor"}
_TAKEN = ("critic", "actor")  # after "--method.": a method's own options cannot have these names
_METAVARS = {"tasks": "NAME [NAME ...]"} | dict.fromkeys(
    ("suite", "agent", "method", "critic_method", "actor_method"), "NAME|MODULE:NAME"
)
_WITH_RESUME = ("--resume", "--steps", "--device", "--allow-version-mismatch", "--no-allow-version-mismatch")


@settings("--")
class _RunFlags:
    """Flags of the command itself, beside those of the configuration."""

    preset: str | None = None
    """Values to start from."""
    run_dir: str | None = None
    """Default: runs/TASKS/METHOD/seedK-TIME."""
    resume: str | None = None
    """Run directory to continue; takes only --steps and --device."""
    resume_or_start: str | None = None
    """Run directory to continue, or to start in: for requeued jobs."""
    allow_version_mismatch: bool = False
    """Accept a checkpoint of another metaworld, mujoco or major version of torch."""
    print_config: bool = False
    """Print the resolved configuration as YAML and end."""


@settings("--")
class _ResumeFlags:
    resume: str
    """Run directory to continue."""
    steps: Annotated[int, Field(gt=0)] | None = None
    """New length of the run in vector steps."""
    device: Device | None = None
    """Training device from now on."""
    allow_version_mismatch: bool = False
    """Accept a checkpoint of other versions."""


@command
def main(arguments: list[str], *, preset: str | None = None, tasks: tuple[str, ...] | None = None) -> int:
    """Start a run or resume one.

    Args:
        arguments: flags.
        preset: the preset used without `--preset`; None: the dataclass defaults.
        tasks: the tasks used without `--tasks`; None: those of the preset, which must then name some.
    """
    flags_given = given(arguments)
    if "--resume" in flags_given and not wants_help(arguments):
        return _resume(arguments)
    preset = peek(arguments, "--preset") or preset
    layers: list[Mapping[str, Any]] = [load_preset(preset)] if preset else []
    if tasks:
        layers.append({"tasks": tasks})
    tasks_known = any("tasks" in layer for layer in layers) or "--tasks" in flags_given
    from mtrl.training.resolve import resolve, written_out

    base = written_out(build_config(*layers, _chosen(arguments)))
    members = [*_config_flags(Config, base), *_run_flags(preset)]
    if wants_help(arguments):
        print_help(members, _DESCRIPTION, "" if "--method" in flags_given else _methods())
        return 0
    values = parse(members, arguments)
    if not tasks_known:
        raise UserError("no tasks: give --tasks MT10, --tasks reach-v3 push-v3 or a preset that names tasks.")
    own = _RunFlags(**{field.name: values.pop(field.name) for field in dataclasses.fields(_RunFlags)})
    if own.resume_or_start and own.run_dir:
        raise UserError(
            "--resume-or-start names the run directory itself; found --run-dir besides. Give one."
        )
    if own.allow_version_mismatch and not own.resume_or_start:
        raise UserError(
            "--allow-version-mismatch is about a checkpoint; found neither --resume nor --resume-or-start. "
            "Leave it out."
        )
    config = resolve(build_config(values))
    if own.print_config:
        print(config_text(config), end="")
        return 0
    from mtrl.training.run import resume_or_start, train

    if own.resume_or_start:
        path, any_version = Path(own.resume_or_start), own.allow_version_mismatch
        return resume_or_start(config, path, allow_version_mismatch=any_version).exit_code
    return train(config, run_dir=Path(own.run_dir) if own.run_dir else None).exit_code


def _resume(arguments: list[str]) -> int:
    for flag in given(arguments):
        if flag not in _WITH_RESUME:
            raise UserError(
                f"--resume continues a run with its own configuration and takes only --steps and --device "
                f"(and --allow-version-mismatch) besides; found {flag}. To change it, start a new run."
            )
    flags = parse_command(_ResumeFlags, arguments)
    assert flags is not None
    from mtrl.training.run import resume_training

    return resume_training(
        Path(flags.resume),
        steps=flags.steps,
        device=flags.device,
        allow_version_mismatch=flags.allow_version_mismatch,
    ).exit_code


def _chosen(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the layer of the plug-ins that flags choose: it decides which other flags there are."""
    chosen: dict[str, Any] = {}
    for key in ("suite", "agent", "method", *_FLAGS):
        flag = f"--{_FLAGS.get(key, key)}"
        if (name := peek(arguments, flag)) is not None:
            chosen[key] = name
        if (base := peek(arguments, f"{flag}.base")) is not None:
            chosen[f"{key}_options"] = {"base": base}
    if (architecture := peek(arguments, "--network.architecture")) is not None:
        chosen["network"] = {"architecture": architecture}
    return chosen


def _config_flags(cls: Any, values: Any) -> list[Flag | Group]:
    """Return the flags of Config or of a section of it; their defaults are `values`, with all options."""
    from mtrl.training.resolve import WITH_OPTIONS

    members: list[Flag | Group] = []
    for option in fields_of(cls, values):
        name, value = option.name, option.default
        if owner := owner_of(name):
            if value:
                flag = "options" if name == "options" else _FLAGS.get(owner, owner)
                plugin = getattr(values, owner)
                members.append(_options_group(WITH_OPTIONS[owner], plugin, value, name, flag))
        elif dataclasses.is_dataclass(value):
            summary = (type(value).__doc__ or "").partition("\n")[0]
            members.append(Group(name, name, summary, tuple(_config_flags(type(value), value))))
        elif name != "method_defaults":
            members.append(option_flag(option, _FLAGS.get(name), _METAVARS.get(name)))
    return members


def _options_group(registry: Registry, plugin: str, values: Mapping[str, Any], key: str, flag: str) -> Group:
    """Return the flags of a plug-in's options; the options of one that it wraps are a group of their own."""
    options = registry.options(plugin)
    wrapped = {own: name for name, own in registry.wrapped(options).items()}
    members: list[Flag | Group] = []
    for name, option in options.items():
        if flag == "method" and name in _TAKEN:
            raise UserError(f"an option of a method cannot be called '{name}': --method.{name} is taken.")
        if name not in wrapped:
            members.append(option_flag(option._replace(default=values[name])))
        elif values[name]:
            base = wrapped[name]
            members.append(_options_group(registry, values[base], values[name], name, base))
    return Group(key, flag, f"{plugin}: {registry.summary(plugin)}", tuple(members))


def _run_flags(preset: str | None) -> list[Flag]:
    metavars = {"preset": "{" + ",".join(preset_names()) + "}|FILE.yaml"}
    metavars |= dict.fromkeys(("run_dir", "resume", "resume_or_start"), "PATH")
    options = fields_of(_RunFlags, _RunFlags(preset=preset))
    return [option_flag(option, None, metavars.get(option.name)) for option in options]


def _methods() -> str:
    from mtrl.combiners import COMBINERS

    width = max(map(len, COMBINERS)) + 2
    lines = [f"  {name:<{width}}{COMBINERS.summary(name)}" for name in COMBINERS]
    return "\n".join(["methods:", *lines])
