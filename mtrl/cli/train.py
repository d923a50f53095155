"""`mtrl-train`: start a run or resume one; flags override a preset, which overrides the defaults.

The flags depend on the chosen plug-ins (`--method cagrad` has `--method.c`), so the names of these are read
first; then all flags are parsed, with the values of the preset as defaults.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mtrl.cli import command, flags, importing
from mtrl.cli.flags import Flag, Group, fields_of, option_flag, parse_command, peek, wants_help
from mtrl.config.presets import OF_NETWORK, build_config, config_text, load_preset, owner_of, preset_names
from mtrl.config.schema import Config, Device
from mtrl.config.values import field_types, from_text, items_of, settings
from mtrl.errors import UserError
from mtrl.registry import REQUIRED, Registry

_DESCRIPTION = (
    "Train one multi-task agent; --method combines the gradients of its tasks. `--method NAME --help` shows "
    "that method's options and what to cite, and so do --suite, --network and --agent. MW+ stands for the "
    "Meta-World+ protocol (arXiv 2505.11289)."
)
# Keys with flags of another name: every flag about methods begins with --method.
_FLAGS = {"critic_method": "method.critic", "actor_method": "method.actor"}
_SHORT = {"--network": "--network.architecture"}
_TAKEN = ("critic", "actor")  # after "--method.": a method's own options cannot have these names
_METAVARS = {"tasks": "NAME [NAME ...]"} | dict.fromkeys(
    ("suite", "agent", "method", "critic_method", "actor_method"), "NAME|MODULE:NAME"
)


@settings("--")
class _RunFlags:
    """Flags of the command that are no settings of the run."""

    preset: str | None = None
    """Values to start from."""
    run_dir: str | None = None
    """Directory of the new run; by default runs/TASKS/METHOD/seedN-TIME."""
    resume: str | None = None
    """Run directory to continue; besides it only --steps, --device, --allow-version-mismatch and --trust."""
    resume_or_start: str | None = None
    """Run directory to continue or to start in, for requeued jobs."""
    allow_version_mismatch: bool = False
    """Accept a checkpoint of another version of the suite of tasks or another major version of torch."""
    trust: bool = False
    """Run code that the run's configuration names, such as a method in a file; see SECURITY.md."""
    print_config: bool = False
    """Print the resolved configuration as YAML, train nothing."""


@settings("--")
class _ResumeFlags:
    resume: str  # no help: that of `_RunFlags` describes these flags too
    steps: Annotated[int, Field(gt=0)] | None = None
    device: Device | None = None
    allow_version_mismatch: bool = False
    trust: bool = False


@command
def main(arguments: list[str], *, preset: str | None = None, tasks: tuple[str, ...] | None = None) -> int:
    """Start a run or resume one.

    Args:
        arguments: of the command line.
        preset: default of `--preset`.
        tasks: the only ones that are trained without `--tasks`; a preset of others is refused.
    """
    arguments = [_spelled_out(argument) for argument in arguments]
    flags_given = flags.given(arguments)
    if "--resume" in flags_given and not wants_help(arguments):
        return _resume(arguments)
    preset = peek(arguments, "--preset") or preset
    layers: list[Mapping[str, Any]] = [{"tasks": tasks}] if tasks else []
    if preset:
        layers.append(load_preset(preset))
    tasks_known = any("tasks" in layer for layer in layers) or "--tasks" in flags_given
    with importing():
        from mtrl.training.resolve import resolve, why_unread, written_out

    base = written_out(build_config(*layers, _chosen(arguments)), missing=flags.UNSET)
    members = [*_config_flags(Config, base), *_run_flags(preset)]
    if wants_help(arguments):
        if not tasks_known:
            members = [_without_default(member) if member.flag == "tasks" else member for member in members]
        flags.print_help(members, _DESCRIPTION, _below_help(base, flags_given))
        return 0
    values = flags.parse(members, arguments)
    if not tasks_known:
        raise UserError("no tasks: give --tasks MT10, --tasks reach-v3 push-v3 or a preset that names tasks.")
    if tasks and "--tasks" not in flags_given and base.tasks != tasks:
        raise UserError(
            f"this script trains {' '.join(tasks)}; the preset {preset} names {' '.join(base.tasks)}. Use "
            "scripts/train.py (mtrl-train) for the preset's tasks, or choose with --tasks."
        )
    own = _RunFlags(**{field.name: values.pop(field.name) for field in dataclasses.fields(_RunFlags)})
    if own.resume_or_start and own.run_dir:
        raise UserError("--resume-or-start already names the run directory; found --run-dir too. Give one.")
    for flag in ("allow_version_mismatch", "trust"):
        if getattr(own, flag) and not own.resume_or_start:
            raise UserError(
                f"--{flag.replace('_', '-')} needs a checkpoint; found neither --resume nor "
                "--resume-or-start. Leave it out."
            )
    try:
        config = resolve(build_config(values))
    except UserError as error:
        if any("," in task for task in values["tasks"]) and "--tasks" in flags_given:
            raise UserError(f"{error} Separate tasks by spaces: --tasks reach-v3 push-v3.") from None
        raise
    for flag in flags_given:
        if why := why_unread(config, _key(flag)):  # a preset may set it all the same
            raise UserError(f"{_key(flag)} {why}; found {flag}. Leave it out.")
    if own.print_config:
        print(config_text(config), end="")
        return 0
    with importing():
        from mtrl.training.run import resume_or_start, train

    if own.resume_or_start:
        return resume_or_start(
            config,
            Path(own.resume_or_start),
            allow_version_mismatch=own.allow_version_mismatch,
            trust=own.trust,
        ).exit_code
    return train(config, run_dir=Path(own.run_dir) if own.run_dir else None).exit_code


def _key(flag: str) -> str:
    """Return the dotted name of a flag's setting; options of a plug-in follow its name."""
    key = flag.removeprefix("--").replace("-", "_")
    for owner, name in _FLAGS.items():
        if f"{key}.".startswith(f"{name}."):
            key = owner + key.removeprefix(name)
    section, dot, last = key.rpartition(".")
    return f"{section}{dot}{last.removeprefix('no_')}"


def _spelled_out(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return _SHORT.get(flag, flag) + equals + value


def _resume(arguments: list[str]) -> int:
    own = {field.name for field in dataclasses.fields(_ResumeFlags)}
    for flag in flags.given(arguments):
        if _key(flag) not in own:
            raise UserError(
                "--resume continues a run with its own configuration and takes only --steps, --device, "
                f"--allow-version-mismatch and --trust besides; found {flag}. To change it, start a new run."
            )
    asked = parse_command(_ResumeFlags, arguments)
    with importing():
        from mtrl.training.run import resume_training

    values = {name: value for name, value in vars(asked).items() if name != "resume"}
    return resume_training(Path(asked.resume), **values).exit_code


def _chosen(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the plug-ins that flags choose, as a layer; they decide which other flags there are."""
    chosen: dict[str, Any] = {}
    for key in ("suite", "agent", "method", *_FLAGS):
        flag = f"--{_FLAGS.get(key, key)}"
        if (name := peek(arguments, flag)) is not None:
            chosen[key] = from_text(name, field_types(Config)[key])
        if wrapped := _wrapped(arguments, flag):
            chosen[f"{key}_options"] = wrapped
    if (architecture := peek(arguments, "--network.architecture")) is not None:
        chosen["network"] = {"architecture": architecture}
    return chosen


def _wrapped(arguments: Sequence[str], flag: str) -> dict[str, Any]:
    """Return the options that name the methods which a method wraps, one within the other."""
    below = f"{flag}.base"
    if not any(f"{given}.".startswith(f"{below}.") for given in flags.given(arguments)):
        return {}
    name, inner = peek(arguments, below), _wrapped(arguments, below)
    return ({} if name is None else {"base": name}) | ({"base_options": inner} if inner else {})


def _config_flags(cls: Any, values: Any) -> list[Flag | Group]:
    """Return the flags of Config or of a section of it; `values` has their defaults and all options."""
    from mtrl.training.resolve import WITH_OPTIONS

    members: list[Flag | Group] = []
    for option in fields_of(cls, values):
        name, value = option.name, option.default
        if owner := owner_of(name):
            flag = name.replace("_", "-") if name in OF_NETWORK else _FLAGS.get(owner, owner)
            plugin = getattr(values, owner)
            if name in ("actor_options", "critic_options") and values.options:
                members.append(_overrides_group(plugin, value, name, flag))
            elif value:
                members.append(_options_group(WITH_OPTIONS[owner], plugin, value, name, flag))
        elif dataclasses.is_dataclass(value):
            summary = (type(value).__doc__ or "").partition("\n")[0]
            members.append(Group(name, name, summary, tuple(_config_flags(type(value), value))))
        elif name != "method_defaults":
            members.append(option_flag(option, _FLAGS.get(name), _METAVARS.get(name)))
    return members


def _options_group(registry: Registry, plugin: str, values: Mapping[str, Any], key: str, flag: str) -> Group:
    """Return the flags of a plug-in's options; those of a wrapped plug-in are a group of their own."""
    options = registry.options(plugin)
    wrapped = {own: name for name, own in registry.wrapped(options).items()}
    members: list[Flag | Group] = []
    for name, option in options.items():
        if flag == "method" and name in _TAKEN:
            raise UserError(f"an option of a method cannot be called '{name}': --method.{name} is taken.")
        if name not in wrapped:
            # So that it may be left out: `resolve` says what is missing.
            if values[name] is flags.UNSET and items_of(option.annotation) is None:
                option = option._replace(annotation=option.annotation | None)
            members.append(option_flag(option._replace(default=values[name])))
        elif values[name]:
            base = wrapped[name]
            members.append(_options_group(registry, values[base], values[name], name, base))
    return Group(key, flag, f"{plugin}: {registry.summary(plugin)}", tuple(members))


def _overrides_group(network: str, values: Mapping[str, Any], key: str, flag: str) -> Group:
    """Return the flags of a network's options for one role; those not given stay with `network.options`."""
    from mtrl.training.resolve import WITH_OPTIONS

    members = []
    for name, option in WITH_OPTIONS["architecture"].options(network).items():
        kept = values.get(name, flags.UNSET)
        if items_of(option.annotation) is None:  # as text, so that a bool has a third value: not given
            option = option._replace(annotation=option.annotation | None)
        members.append(option_flag(option._replace(default=kept)))
    return Group(key, flag, f"{network}: options of the {key.partition('_')[0]} alone", tuple(members))


def _run_flags(preset: str | None) -> list[Flag]:
    metavars = {"preset": "{" + ",".join(preset_names()) + "}|FILE.yaml"}
    metavars |= dict.fromkeys(("run_dir", "resume", "resume_or_start"), "PATH")
    options = fields_of(_RunFlags, _RunFlags(preset=preset))
    return [option_flag(option, None, metavars.get(option.name)) for option in options]


def _without_default(member: Flag | Group) -> Flag | Group:
    """Return a flag for which help prints "required" in place of a default."""
    assert isinstance(member, Flag)
    return member._replace(option=member.option._replace(default=REQUIRED))


def _below_help(config: Config, flags_given: Sequence[str]) -> str:
    """Return what to cite for the plug-ins that flags name; for others what there is to choose from."""
    from mtrl.training.resolve import WITH_OPTIONS, citations

    chosen = {
        "method": any(flag == "--method" or flag.startswith("--method.") for flag in flags_given),
        "network": "--network.architecture" in flags_given,
        "agent": "--agent" in flags_given,
    }
    lists = {"method": WITH_OPTIONS["method"], "network": WITH_OPTIONS["architecture"]}
    parts = []
    for kind, named in citations(config).items():
        if chosen[kind]:
            parts += [f"to cite for {name}:\n{text}\n" for name, text in named.items() if text]
        elif kind in lists:
            parts.append(_list(f"{kind}s", lists[kind]))
    return "\n".join(parts)


def _list(title: str, registry: Registry) -> str:
    width = max(map(len, registry)) + 2
    lines = [f"  {name:<{width}}{registry.summary(name)}" for name in registry]
    return "\n".join([f"{title}:", *lines])
