"""Names of exchangeable parts and their options, checked and written out before anything starts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal

from mtrl.agents import AGENTS
from mtrl.agents.sac.methods import make_combiners
from mtrl.combiners import COMBINERS, make_combiner
from mtrl.config.options import Option, complete, options_of
from mtrl.config.schema import Config
from mtrl.envs.suite import SUITES
from mtrl.errors import UserError, unknown_name
from mtrl.networks.base import NETWORKS
from mtrl.registry import load_object
from mtrl.training.parts import suite_of

# Arguments that the engine gives; all others are options.
_GIVEN = {
    "method": {"num_tasks"},
    "suite": {"tasks", "task_names", "num_goals", "seed"},
    "network": {"stack", "num_tasks", "inputs", "outputs", "task_identity"},
}
_REGISTRIES: Mapping[str, Mapping[str, Any]] = {
    "method": COMBINERS, "suite": SUITES, "network": NETWORKS, "agent": AGENTS,
}  # fmt: skip


def part_of(kind: str, name: str) -> Any:
    """Return the method, suite, network or agent of that name, or the one "package.module:Name" names.

    Raises:
        UserError: no such part; the nearest valid name is given.
    """
    registry = _REGISTRIES[kind]
    if ":" in name:
        return load_object(name, kind)
    if name not in registry:
        message = unknown_name(kind, name, registry)
        raise UserError(f"{message} Your own {kind} is written package.module:Name or file.py:Name.")
    return registry[name]


def part_options(kind: str, name: str) -> dict[str, Option]:
    """Return the options of a method, suite or network; raises as `part_of`.

    The built-in mlp has none here: widths, depths and the like are fields of `network`.
    """
    if (kind, name) == ("network", "mlp"):
        return {}
    return options_of(part_of(kind, name), _GIVEN[kind])


def summary_of(kind: str, name: str) -> str:
    """Return the first line of a part's docstring."""
    return (inspect.getdoc(part_of(kind, name)) or "").partition("\n")[0]


def base_options(options: Mapping[str, Option]) -> dict[str, str]:
    """Return, for options that name another method, the option that holds that method's own options."""
    return {name: f"{name}_options" for name in options if f"{name}_options" in options}


def resolve(config: Config) -> Config:
    """Return `config` with every option of its parts written out.

    Raises:
        UserError: an unknown part, task or option (the nearest name is given), an option of another type or
            outside its rule, a method that cannot combine what the agent gives it.
    """
    completed = written_out(config)
    num_tasks = len(suite_of(completed).task_names)
    networks: tuple[Literal["critic", "actor"], ...] = ("critic", "actor")
    for network in networks:
        name, options = completed.method_of(network)
        try:
            make_combiner(name, num_tasks=num_tasks, **options)
        except ValueError as error:
            raise UserError(f"method {name}: {error}") from error
    if completed.agent == "sac":
        make_combiners(completed, num_tasks)
    return completed


def written_out(config: Config) -> Config:
    """Return `config` with every option of its parts written out, types checked and nothing built."""
    part_of("agent", config.agent)
    for name, options in config.method_defaults.items():
        _complete_method(name, options, {}, f"method_defaults.{name}")
    changes: dict[str, Any] = {"method_defaults": {}}
    for key in ("method", "critic_method", "actor_method"):
        name = getattr(config, key)
        if name is not None:
            given = getattr(config, f"{key}_options")
            changes[f"{key}_options"] = _complete_method(
                name, given, config.method_defaults, f"{key}_options"
            )
    suite, architecture = config.suite, config.network.architecture
    changes["suite_options"] = complete(
        config.suite_options, part_options("suite", suite), f"suite '{suite}'", "suite_options"
    )
    options = complete(
        config.network.options,
        part_options("network", architecture),
        f"network '{architecture}'",
        "network.options",
    )
    changes["network"] = dataclasses.replace(config.network, options=options)
    return dataclasses.replace(config, **changes)


def _complete_method(
    name: str, given: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]], path: str
) -> dict[str, Any]:
    """Return all options of a method; a wrapper's base gets its own, those of `defaults` included."""
    options = part_options("method", name)
    values = complete({**defaults.get(name, {}), **given}, options, f"method '{name}'", path)
    for base, of_base in base_options(options).items():
        values[of_base] = _complete_method(values[base], values[of_base] or {}, defaults, f"{path}.{of_base}")
    return values
