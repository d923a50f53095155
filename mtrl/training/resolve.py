"""Check the plug-ins and options of a configuration before anything starts."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrl.agents import AGENTS
from mtrl.combiners import COMBINERS, make_combiner
from mtrl.config.presets import (
    INCIDENTAL,
    config_text,
    config_to_dict,
    differences,
    flat_config,
    is_same,
    load_config,
)
from mtrl.config.schema import Config
from mtrl.config.values import convert, quoted
from mtrl.envs.suite import SUITES
from mtrl.errors import UserError, unknown_name
from mtrl.networks.base import NETWORKS
from mtrl.networks.identity import digest
from mtrl.networks.make import check_networks
from mtrl.registry import REQUIRED, Registry
from mtrl.runs.directory import CONFIG_NAME
from mtrl.runs.log import SINKS
from mtrl.training.build import suite_of
from mtrl.training.trust import code_in

WITH_OPTIONS = {
    "suite": SUITES, "method": COMBINERS, "critic_method": COMBINERS, "actor_method": COMBINERS,
    "architecture": NETWORKS,
}  # fmt: skip
"""Keys of the configuration that name a plug-in with options; the options are under KEY_options."""
# What may change in a run's life. A file of task rows may be moved: `bound_to_policy` has what it holds.
_FREE = ("steps", "network.identity_file", *INCIDENTAL)


def resolve(config: Config) -> Config:
    """Return `config` with every option of its plug-ins written out.

    Raises:
        UserError: something else than a Config, an unknown plug-in, task or option (the nearest name is
            given), an option of the wrong type or out of range, a sink named twice, settings that the agent
            refuses.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"config must be an mtrl.Config; found a {type(config).__name__}. Settings as a mapping: "
            "Config.from_preset(NAME, settings)."
        )
    completed = written_out(config)
    config_text(completed)  # refuses what no file can hold
    for name, count in Counter(config.train.sinks).items():
        SINKS.check(name)  # imported where it is used: a policy can be evaluated without it
        if count > 1:
            raise UserError(f"train.sinks names {name} {count} times. Give each sink once.")
    task_names = suite_of(completed).task_names
    num_tasks = len(task_names)
    for name, options in completed.methods().values():
        try:
            make_combiner(name, num_tasks=num_tasks, **options)
        except ValueError as error:
            raise UserError(f"method {name}: {error}") from error
    check_networks(completed.network, task_names)
    check = getattr(AGENTS[completed.agent], "check", None)
    if check is not None:
        check(completed, num_tasks)
    return completed


def citations(config: Config) -> dict[str, dict[str, str]]:
    """Return what to cite for methods, with those that they wrap, network and agent: kind -> name -> text.

    The text is a sentence about the sources, where there is one, and BibTeX; "" for a plug-in without.
    """
    methods: list[str] = []
    for name, options in config.methods().values():
        methods += [name, *(options[base] for base in COMBINERS.wrapped(options))]
    of = {"method": (COMBINERS, methods), "network": (NETWORKS, [config.network.architecture])}
    of["agent"] = (AGENTS, [config.agent])
    return {
        kind: {name: "\n".join(filter(None, registry.citation(name))) for name in names}
        for kind, (registry, names) in of.items()
    }


def written_out(config: Config, missing: Any = REQUIRED) -> Config:
    """Return `config` with every option of its plug-ins written out; checks types, builds nothing.

    `missing` stands for options without a default that are not given; REQUIRED: they are refused.
    """
    _ = AGENTS[config.agent]  # raises if there is none
    defaults, network = config.method_defaults, config.network
    for name, options in defaults.items():
        complete(COMBINERS, name, options, f"method_defaults.{name}", missing=None)  # the rest may come later
    changes: dict[str, Any] = {"method_defaults": {}}
    for key in ("method", "critic_method", "actor_method", "suite"):
        if (name := getattr(config, key)) is not None:
            below = defaults if key != "suite" else {}
            given = getattr(config, f"{key}_options")
            where = f"{key}_options"
            changes[where] = complete(WITH_OPTIONS[key], name, given, where, below, missing)
    architecture = network.architecture
    of_network: dict[str, Any] = {
        key: checked(NETWORKS, architecture, getattr(network, key), f"network.{key}")
        for key in ("actor_options", "critic_options")
    }
    options = complete(NETWORKS, architecture, network.options, "network.options", missing=missing)
    of_network["options"] = options
    changes["network"] = dataclasses.replace(network, **of_network)
    return dataclasses.replace(config, **changes)


def why_unread(config: Config, key: str) -> str | None:
    """Return why a setting has no effect, in words that follow its dotted name; None if it has an effect."""
    for name, why in _unread(config).items():
        if key == name or key.startswith(f"{name}."):
            return why
    return None


def unread_facts(config: Config) -> dict[str, str]:
    """Return the line of the start screen on settings without effect that are not at their defaults."""
    values, defaults = flat_config(config), flat_config(Config())
    changed = [key for key, value in values.items() if value != defaults.get(key, value)]
    unread = [name for name in _unread(config) if any(f"{key}.".startswith(f"{name}.") for key in changed)]
    return {"not used": ", ".join(unread)} if unread else {}


def _unread(config: Config) -> dict[str, str]:
    """Return the settings and sections that have no effect, also those that the agent names: name -> why."""
    unread = getattr(AGENTS[config.agent], "unread", None)
    reasons = {} if unread is None else dict(unread(config))
    if None not in (config.critic_method, config.actor_method):
        reasons.setdefault("method", "is not read where critic and actor have methods of their own")
    return reasons


def check_same_run(config: Config, path: Path) -> None:
    """Raise UserError if the run in `path` has another configuration than `config`; names each difference.

    `steps` and the INCIDENTAL settings may differ.
    """
    stored = load_config(path / CONFIG_NAME)
    if not code_in(stored).keys() - code_in(config).keys():  # code that differs is a difference, and not run
        with contextlib.suppress(UserError):  # a plug-in or option that is not there now is a difference
            stored = written_out(stored)
    found, asked = (flat_config(one) for one in (stored, config))
    differing = differences(found, asked, but=_FREE)
    if differing:
        words = ", ".join(f"{key} {theirs} (here {ours})" for key, (theirs, ours) in differing.items())
        raise UserError(
            f"'{path}' holds a run of another configuration: {words}. Give the flags of that run, or start "
            "elsewhere with another directory."
        )


def bound_to_policy(config: Config) -> dict[str, Any]:
    """Return the settings without which a stored policy cannot act, by dotted key."""
    parts = ("tasks", "suite", "agent", "network.", "ppo.squash")
    found = {key: value for key, value in flat_config(config).items() if key.startswith(parts)}
    # Mappings whose keys are the run's own are compared as a whole too: a key more or less is a difference.
    plain = config_to_dict(config)
    found |= {f"network.{key}": plain["network"][key] for key in ("actor_options", "critic_options")}
    own = plain["suite_options"].items()
    found |= {f"suite_options.{key}": value for key, value in own if isinstance(value, dict)}
    file = found.pop("network.identity_file")
    if file is not None:  # what counts is what it holds, wherever it lies
        found["network.identity_file.sha256"] = digest(file)
    return found


def bound_to_run(config: Config) -> dict[str, Any]:
    """Return the settings that a run keeps for life, by dotted key."""
    bound = {key: value for key, value in flat_config(config).items() if key not in _FREE}
    return bound | bound_to_policy(config)


def complete(
    registry: Registry,
    name: str,
    values: Mapping[str, Any],
    path: str,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    missing: Any = REQUIRED,
) -> dict[str, Any]:
    """Return every option of the plug-in `name`: the converted value if one is given, else the default.

    `path` names `values` in messages, for instance "method_options". `defaults` has, by a plug-in's name,
    options that replace its own defaults, also for a wrapped plug-in. `missing` as for `written_out`.

    Raises:
        UserError: an unknown option (the nearest one is given), a value of the wrong type, a missing value.
    """
    defaults, options = defaults or {}, registry.options(name)
    given = checked(registry, name, {**defaults.get(name, {}), **values}, path)
    completed = {}
    for key, option in options.items():
        if key in given:
            completed[key] = given[key]
        elif option.default is not REQUIRED:
            completed[key] = option.default
        elif missing is not REQUIRED and key not in registry.wrapped(options):
            completed[key] = missing
        else:
            owner = f"{registry.kind} '{name}'"
            raise UserError(f"{path}: {owner} needs a value for its option '{key}'; found none.")
    for key, own in registry.wrapped(options).items():
        given, where = completed[own] or {}, f"{path}.{own}"
        completed[own] = complete(registry, completed[key], given, where, defaults, missing)
    return completed


def checked(registry: Registry, name: str, values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return `values`, options of the plug-in `name`, converted; raises as `complete`."""
    options, owner = registry.options(name), f"{registry.kind} '{name}'"
    for key, value in values.items():
        if not options:
            raise UserError(f"{path}: {owner} has no options; found '{key}' = {quoted(value)}.")
        if key not in options:
            raise UserError(unknown_name(f"option of {owner}", str(key), options))
    return {
        # A default need not fit its annotation (`width: int = None`), and is the same when it is read back.
        key: option.default
        if is_same(value, (option := options[key]).default)
        else convert(value, option.annotation, f"{path}.{key}")
        for key, value in values.items()
    }
