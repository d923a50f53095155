"""What the start screen says about a run: tasks, protocol, machine, size, and how long it will take here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from mtrl.agents.sac.agent import MTSAC
from mtrl.agents.sac.replay import random_replay, replay_bytes
from mtrl.agents.sac.update import Updater
from mtrl.config.schema import Config
from mtrl.device.cuda_graph import WARM_UP_CALLS
from mtrl.envs import TaskVectorEnv

# One env step of MT10 took 0.2 ms of one server core (2.0 ms for all ten, random actions).
ENV_STEP_SECONDS = 2e-4
LONG_RUN_SECONDS = 6 * 3600.0


def describe(
    config: Config, agent: MTSAC, envs: TaskVectorEnv, path: Path, start: int
) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Return title, facts and notes of the start screen; measures a few updates on a scratch agent."""
    benchmark = config.tasks[0] if len(config.tasks) == 1 else f"{envs.num_tasks} tasks"
    options = ", ".join(f"{name}={value}" for name, value in config.method_options.items())
    network, env = config.network, config.env
    update = seconds_per_update(config, agent)
    per_step = seconds_per_vector_step(
        environments=ENV_STEP_SECONDS * envs.num_envs,
        workers=envs.num_workers,
        updates=update * config.train.updates_per_step,
        threads=torch.get_num_threads() if agent.device.type == "cpu" else 1,
        cores=len(os.sched_getaffinity(0)),
    )
    total = per_step * (config.steps - start)
    facts = [
        ("method", config.method + (f" ({options})" if options else "")),
        (
            "tasks",
            ", ".join(envs.task_names) if envs.num_tasks <= 10 else f"{envs.num_tasks} of {config.suite}",
        ),
        (
            "protocol",
            f"{envs.num_goals} goals, {env.max_episode_steps} steps per episode, "
            f"{config.steps:,} vector steps, batch {config.sac.batch_per_task} per task, seed {config.seed}",
        ),
        (
            "networks",
            f"actor {network.actor_depth}x{network.actor_width}, critics 2x{network.critic_depth}x"
            f"{network.critic_width}, {parameter_count(agent):,} trained parameters",
        ),
        ("device", _device_name(agent.device)),
        ("memory", _memory(config, agent)),
        ("environments", f"{envs.num_envs} in {envs.num_workers} worker processes"),
        ("estimate", f"about {duration(total)} ({1e3 * update:.1f} ms per update here)"),
        ("run", str(path)),
    ]
    if start:
        facts.append(("resumed", f"at vector step {start:,}"))
    notes = []
    if agent.device.type == "cpu" and total > LONG_RUN_SECONDS:
        notes.append(
            f"Without a GPU this protocol takes about {total / 86400:.1f} days here. "
            "`--preset laptop` learns MT10 on two CPU cores in under an hour."
        )
    return f"mtrl: {benchmark}, {config.method}", facts, notes


def seconds_per_update(config: Config, agent: MTSAC) -> float:
    """Time of one update, the fastest of three on random transitions; leaves `agent` as it was."""
    scratch = MTSAC(
        num_tasks=agent.num_tasks,
        obs_dim=agent.obs_dim,
        action_dim=agent.action_dim,
        network=config.network,
        sac=config.sac,
        method=config.method,
        method_options=config.method_options,
        device=agent.device,
        seed=0,
    )
    batch = config.sac.batch_per_task
    replay = random_replay(agent.num_tasks, batch, agent.obs_dim, agent.action_dim, agent.device)
    update = Updater(scratch, replay, batch)
    times = []
    for _ in range(4 if agent.device.type == "cpu" else WARM_UP_CALLS + 4):
        _wait_for(agent.device)
        began = time.perf_counter()
        update()
        _wait_for(agent.device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def seconds_per_vector_step(
    *, environments: float, workers: int, updates: float, threads: int, cores: int
) -> float:
    """Seconds per vector step: environments and updates overlap as far as there are cores for both.

    Args:
        environments: core seconds of all environments together.
        workers: processes that share them.
        updates: seconds of the updates on their `threads`.
        threads: of the learner.
        cores: available.
    """
    return max(environments / workers, updates, (environments + updates * threads) / cores)


def _memory(config: Config, agent: MTSAC) -> str:
    stored = replay_bytes(agent.num_tasks, config.replay.capacity_per_task, agent.obs_dim, agent.action_dim)
    parts = {
        "replay": stored,
        "networks and optimisers": agent.state_bytes,
        "per-task gradients": agent.jacobian_bytes,
    }
    return ", ".join(f"{name} {_size(number)}" for name, number in parts.items())


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def parameter_count(agent: MTSAC) -> int:
    """Trained parameters: actor, critics, temperatures; targets are copies and do not count."""
    return sum(parameter.numel() for parameter in agent.parameters())


def duration(seconds: float) -> str:
    """Write seconds in the unit a person would use."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length or (unit == "minutes" and seconds >= length):
            return f"{seconds / length:.1f} {unit}"
    return f"{max(seconds, 1.0):.0f} s"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
