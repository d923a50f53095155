"""What the start screen says about a run: tasks, protocol, machine, and what the agent says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from mtrl.config.schema import Config
from mtrl.envs import TaskVectorEnv

LONG_RUN_STEPS = 500_000  # vector steps; the laptop preset makes fewer


def describe(
    config: Config,
    agent_facts: Mapping[str, str],
    envs: TaskVectorEnv,
    path: Path,
    start: int,
    device: torch.device,
) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Return title, facts and notes of the start screen."""
    benchmark = config.tasks[0] if len(config.tasks) == 1 else f"{envs.num_tasks} tasks"
    suite = "".join(
        f"{name.replace('_', ' ')} {value}, "
        for name, value in config.suite_options.items()
        if value is not None and not isinstance(value, Mapping)  # tables stand in config.yaml
    )
    facts = [
        *_methods(config),
        (
            "tasks",
            ", ".join(envs.task_names) if envs.num_tasks <= 10 else f"{envs.num_tasks} of {config.suite}",
        ),
        (
            "protocol",
            f"{suite}{envs.suite.describe_goals()}, {_episodes(config)}, "
            f"{config.steps:,} vector steps, seed {config.seed}",
        ),
        *agent_facts.items(),
        ("device", _device_name(device)),
        ("environments", f"{envs.num_envs} in {envs.num_workers} worker processes"),
        ("run", str(path)),
    ]
    if start:
        facts.append(("resumed", f"at vector step {start:,}"))
    notes = []
    if device.type == "cpu" and config.steps - start > LONG_RUN_STEPS:
        notes.append(
            "Without a GPU this protocol may take days; the progress bar will tell. "
            "`--preset laptop` trains MT10 on two CPU cores within an hour."
        )
    return f"mtrl: {benchmark}, {config.method}", facts, notes


def _episodes(config: Config) -> str:
    """Length of the episodes, of training and of evaluation where they differ."""
    trained, measured = config.env.max_episode_steps, config.eval.max_episode_steps
    if measured in (None, trained):
        return f"{trained} steps per episode"
    return f"{trained} steps per episode ({measured} in evaluations)"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def _methods(config: Config) -> list[tuple[str, str]]:
    """Return a line for the method of both networks, or one for each."""
    names: tuple[Literal["critic", "actor"], ...] = ("critic", "actor")
    texts = []
    for network in names:
        method, options = config.method_of(network)
        values = ", ".join(f"{name}={value}" for name, value in options.items())
        texts.append(method + (f" ({values})" if values else ""))
    if texts[0] == texts[1]:
        return [("method", texts[0])]
    return [(f"{network}'s method", text) for network, text in zip(names, texts, strict=True)]
