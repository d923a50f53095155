"""The text of the start screen: tasks, protocol, machine and the facts of the agent."""

from collections.abc import Mapping
from pathlib import Path

import torch

from mtrl.config.labels import RESTART, described_methods, method_label
from mtrl.config.schema import Config
from mtrl.device.cpu import precision_on
from mtrl.envs import TaskVectorEnv

_PRODUCTS = {"highest": "float32", "high": "TF32", "medium": "bfloat16"}
_LONG_RUN_STEPS = 500_000  # vector steps; the laptop preset makes fewer


def describe(
    config: Config,
    agent_facts: Mapping[str, str],
    envs: TaskVectorEnv,
    path: Path,
    start: int,
    device: torch.device,
) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Return title, facts and notes of the start screen."""
    names = ", ".join(envs.task_names) if envs.num_tasks <= 10 else f"{envs.num_tasks} of {config.suite}"
    # "MT10" says which tasks they are, a suite's "all" does not.
    named = len(config.tasks) == 1 and config.tasks[0] != "all"
    benchmark = config.tasks[0] if named else f"{envs.num_tasks} tasks"
    suite = "".join(
        f"{name.replace('_', ' ')} {value}, "
        for name, value in config.suite_options.items()
        if value not in (None, False) and not isinstance(value, Mapping)  # tables stand in config.yaml
    )
    facts = [
        *described_methods(vars(config)).items(),
        ("tasks", names),
        (
            "protocol",
            f"{suite}{envs.suite.describe_goals()}, {_episodes(config)}, "
            f"{config.steps:,} vector steps, seed {config.seed}",
        ),
        *agent_facts.items(),
        ("device", _device_name(device, config.train.matmul_precision)),
        (
            "environments",
            f"{envs.num_envs} in {envs.num_workers} worker process{'es' if envs.num_workers > 1 else ''}",
        ),
        ("run", str(path)),
    ]
    if start:
        facts.append(("resumed", f"at vector step {start:,}"))
    if config.env.resume == "restart":
        facts.append(("resume", RESTART))
    notes = []
    if device.type == "cpu" and config.steps - start > _LONG_RUN_STEPS:
        notes.append(
            "Without a GPU this protocol may take days; the progress bar shows the time left. "
            "`--preset laptop` trains MT10 on two CPU cores within an hour."
        )
    one_each = config.env.envs_per_task == 1 and config.train.updates_per_step == 1
    if device.type == "cuda" and config.tasks == ("MT10",) and one_each and config.steps > _LONG_RUN_STEPS:
        notes.append(
            "`--preset mt10_fast` makes as many updates from as many transitions in a quarter of the vector "
            "steps, with four copies of each task."
        )
    return f"mtrl: {benchmark}, {method_label(vars(config))}", facts, notes


def _episodes(config: Config) -> str:
    """Return the length of the episodes, and of those in evaluations if it differs."""
    trained, measured = config.env.max_episode_steps, config.eval.max_episode_steps
    if measured in (None, trained):
        return f"{trained} steps per episode"
    return f"{trained} steps per episode ({measured} in evaluations)"


def _device_name(device: torch.device, precision: str) -> str:
    if device.type == "cuda":
        products = _PRODUCTS[precision_on(device, precision)]
        return f"cuda ({torch.cuda.get_device_name(device)}, products in {products})"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' if threads > 1 else ''})"
