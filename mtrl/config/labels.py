"""What a run is called in folders, tables and charts. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtrl.config.files import file_name

RESTART = "episodes begin anew (env.resume=restart): not bit for bit what an undisturbed run does"
"""What start screen and card say about resuming a run whose checkpoints hold no environments."""


def methods_of(config: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return the name and options of the method that combines the gradients of "critic" and "actor".

    `config` has the fields of a Config by name, as `config.yaml` and `vars(config)` do.
    """
    methods = {}
    for network in ("critic", "actor"):
        key = f"{network}_method" if config.get(f"{network}_method") is not None else "method"
        methods[network] = str(config[key]), config.get(f"{key}_options") or {}
    return methods


def method_label(config: Mapping[str, Any]) -> str:
    """Return what a run's method is called: "cagrad", or "nash_mtl / pcgrad" where critic and actor differ.

    One method with other options for the critic than for the actor is named twice.
    """
    critic, actor = methods_of(config).values()
    return critic[0] if critic == actor else f"{critic[0]} / {actor[0]}"


def tasks_label(tasks: Sequence[str], *, separator: str = ", ", many: str = "tasks") -> str:
    """Return the names of up to three tasks, "10 tasks" for more."""
    return separator.join(tasks) if len(tasks) <= 3 else f"{len(tasks)} {many}"


def tasks_folder(tasks: Sequence[str]) -> str:
    """Return the name of a folder for runs of these tasks: "reach-v3+push-v3" or "10-tasks"."""
    return file_name(tasks_label(tasks, separator="+").lower())


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """Return a plug-in's name with its options: "cagrad (c=0.4)"."""
    values = ", ".join(f"{option}={value}" for option, value in options.items())
    return f"{name} ({values})" if values else name


def described_methods(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the method with its options as "method", or as "critic method" and "actor method"."""
    texts = {f"{network} method": with_options(*method) for network, method in methods_of(config).items()}
    return texts if len(set(texts.values())) > 1 else {"method": texts["critic method"]}
