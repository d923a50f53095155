"""`mtrl-train`: flags over a preset over defaults; start a run or resume one.

Which flags there are depends on the parts that are chosen (`--method cagrad` has `--method.c`), so their
names are looked up first; everything is then parsed over the preset's values.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mtrl.cli.exit_codes import run_command
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
from mtrl.config.options import Option
from mtrl.config.presets import build_config, config_text, load_preset, preset_names
from mtrl.config.schema import Config, Device
from mtrl.config.values import field_types, settings
from mtrl.errors import UserError

_DESCRIPTION = (
    "Train one multi-task agent; --method combines the gradients of its tasks. `--method NAME --help` shows "
    "that method's options, and so do --suite and --network.architecture."
)
# Flags of keys whose own name would not be found: all that is about methods begins with --method.
_FLAGS = {"critic_method": "method.critic", "actor_method": "method.actor"}
_METAVARS = {"tasks": "NAME [NAME ...]"} | dict.fromkeys(
    ("suite", "agent", "method", "critic_method", "actor_method"), "NAME|MODULE:NAME"
)
_OPTIONS_OF = {
    "suite_options": ("suite", "suite"),
    "method_options": ("method", "method"),
    "critic_method_options": ("method", "critic_method"),
    "actor_method_options": ("method", "actor_method"),
}
_ANY_VERSION = "Accept a checkpoint of another metaworld, mujoco or major version of torch."
_WITH_RESUME = ("--resume", "--steps", "--device", "--allow-version-mismatch", "--no-allow-version-mismatch")


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


def main(
    argv: Sequence[str] | None = None, *, preset: str | None = None, tasks: tuple[str, ...] | None = None
) -> int:
    """Train and return the exit code, see `mtrl.cli.exit_codes`.

    Args:
        argv: the arguments; those of the process if None.
        preset: the preset used without `--preset`; None: the dataclass defaults.
        tasks: the tasks used without `--tasks`; None: those of the preset, which must then name some.
    """
    return run_command(functools.partial(_train, preset=preset, tasks=tasks), argv)


def _train(arguments: list[str], preset: str | None, tasks: tuple[str, ...] | None) -> int:
    flags_given = given(arguments)
    if "--resume" in flags_given and not wants_help(arguments):
        return _resume(arguments)
    preset = peek(arguments, "--preset") or preset
    layers: list[Mapping[str, Any]] = [load_preset(preset)] if preset else []
    if tasks:
        layers.append({"tasks": tasks})
    tasks_known = any("tasks" in layer for layer in layers) or "--tasks" in flags_given
    from mtrl.training.resolve import resolve, written_out

    base = written_out(build_config(*layers, _chosen_parts(arguments)))
    members = [*_config_flags(base), *_own_flags(preset)]
    if wants_help(arguments):
        print_help(members, _DESCRIPTION, "" if "--method" in flags_given else _methods())
        return 0
    values = parse(members, arguments)
    if not tasks_known:
        raise UserError("no tasks: give --tasks MT10, --tasks reach-v3 push-v3 or a preset that names tasks.")
    run_dir, printing = values.pop("run_dir"), values.pop("print_config")
    del values["preset"], values["resume"]
    in_place, any_version = values.pop("resume_or_start"), values.pop("allow_version_mismatch")
    if in_place and run_dir:
        raise UserError(
            "--resume-or-start names the run directory itself; found --run-dir besides. Give one."
        )
    if any_version and not in_place:
        raise UserError(
            "--allow-version-mismatch is about a checkpoint; found neither --resume nor --resume-or-start. "
            "Leave it out."
        )
    config = resolve(build_config(values))
    if printing:
        print(config_text(config), end="")
        return 0
    from mtrl.training.run import resume_or_start, train

    if in_place:
        return resume_or_start(config, Path(in_place), allow_version_mismatch=any_version).exit_code
    return train(config, run_dir=Path(run_dir) if run_dir else None).exit_code


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


def _chosen_parts(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the layer of the parts that flags choose: it decides which other flags there are."""
    chosen: dict[str, Any] = {}
    for key, flag in (("suite", "--suite"), ("method", "--method"), ("agent", "--agent")):
        chosen[key] = peek(arguments, flag)
    for key, flag in _FLAGS.items():
        chosen[key] = peek(arguments, f"--{flag}")
    for key in ("method", *_FLAGS):
        base = peek(arguments, f"--{_FLAGS.get(key, key)}.base")
        if base is not None:
            chosen[f"{key}_options"] = {"base": base}
    architecture = peek(arguments, "--network.architecture")
    if architecture is not None:
        chosen["network"] = {"architecture": architecture}
    return {key: value for key, value in chosen.items() if value is not None}


def _config_flags(config: Config) -> list[Flag | Group]:
    """Return the flags of every value of `config`, whose options are written out."""
    from mtrl.training.resolve import part_options, summary_of

    members: list[Flag | Group] = []
    for option in fields_of(Config, config):
        name, value = option.name, option.default
        if name in _OPTIONS_OF:
            kind, owner = _OPTIONS_OF[name]
            part = getattr(config, owner)
            if part is not None and value:
                flag = _FLAGS.get(owner, owner)
                help_text = f"{part}: {summary_of(kind, part)}"
                members.append(_options_group(kind, part_options(kind, part), value, name, flag, help_text))
        elif name in ("env", "replay", "network", "sac", "train", "eval"):
            members.append(_section(name, field_types(Config)[name], value))
        elif name != "method_defaults":
            members.append(option_flag(option, _FLAGS.get(name), _METAVARS.get(name)))
    return members


def _section(name: str, cls: Any, values: Any) -> Group:
    members: list[Flag | Group] = []
    for option in fields_of(cls, values):
        if option.name != "options":
            members.append(option_flag(option))
        elif option.default:
            from mtrl.training.resolve import part_options

            options = part_options("network", values.architecture)
            help_text = f"Arguments of {values.architecture}."
            members.append(
                _options_group("network", options, option.default, "options", "options", help_text)
            )
    return Group(name, name, (cls.__doc__ or "").partition("\n")[0], tuple(members))


def _options_group(
    kind: str, options: Mapping[str, Option], values: Mapping[str, Any], key: str, flag: str, help_text: str
) -> Group:
    """Return the flags of a part's options; the options of a wrapper's base are a group of their own."""
    from mtrl.training.resolve import base_options, part_options, summary_of

    bases = base_options(options) if kind == "method" else {}
    members: list[Flag | Group] = []
    for name, option in options.items():
        if kind == "method" and name in ("critic", "actor"):
            raise UserError(f"an option of a method cannot be called '{name}': --method.{name} is taken.")
        if name in bases.values():
            base = next(base for base, of_base in bases.items() if of_base == name)
            if values[name]:
                inner = part_options("method", values[base])
                about = f"{values[base]}: {summary_of('method', values[base])}"
                members.append(_options_group("method", inner, values[name], name, base, about))
        else:
            members.append(option_flag(option._replace(default=values[name])))
    return Group(key, flag, help_text, tuple(members))


def _own_flags(preset: str | None) -> list[Flag]:
    presets = "{" + ",".join(preset_names()) + "}|FILE.yaml"
    folder = Option("run_dir", str | None, None, "Default: runs/TASKS/METHOD/seedK-TIME.")
    resume = Option("resume", str | None, None, "Run directory to continue; takes only --steps and --device.")
    in_place = Option(
        "resume_or_start", str | None, None, "Run directory to continue, or to start in: for requeued jobs."
    )
    versions = Option("allow_version_mismatch", bool, False, _ANY_VERSION)
    printing = Option("print_config", bool, False, "Print the resolved configuration as YAML and end.")
    return [
        option_flag(Option("preset", str | None, preset, "Values to start from."), None, presets),
        option_flag(folder, None, "PATH"),
        option_flag(resume, None, "PATH"),
        option_flag(in_place, None, "PATH"),
        option_flag(versions),
        option_flag(printing),
    ]


def _methods() -> str:
    from mtrl.combiners import COMBINERS
    from mtrl.training.resolve import summary_of

    width = max(map(len, COMBINERS)) + 2
    lines = [f"  {name:<{width}}{summary_of('method', name)}" for name in sorted(COMBINERS)]
    return "\n".join(["methods:", *lines])
