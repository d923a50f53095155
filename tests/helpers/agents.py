"""Small SAC agents, without a run around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mtrl.agents.base import TaskSpec
from mtrl.agents.sac.agent import SACAgent
from mtrl.agents.sac.update import SACUpdate
from mtrl.config.schema import Config, NetworkConfig, ReplayConfig, SacConfig, TrainConfig
from tests.helpers.loss_methods import sac_options

TASKS, OBS, ACTION, WIDTH = 3, 6, 4, 16
CPU = torch.device("cpu")


def sac_config(
    method: str = "mean",
    *,
    sac: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    replay: Mapping[str, Any] | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    per_network: Mapping[str, Any] | None = None,
    network_options: Mapping[str, Any] | None = None,
    **network: Any,
) -> Config:
    """Configuration of networks of two layers; keyword arguments left over are `network`'s."""
    sizes = {"actor_width": WIDTH, "critic_width": WIDTH, "actor_depth": 2, "critic_depth": 2}
    return Config(
        method=method,
        method_options={**sac_options(method), **(options or {})},
        **(per_network or {}),
        seed=seed,
        network=NetworkConfig(**(sizes | network), options=network_options or {}),
        sac=SacConfig(**({"batch_per_task": 5} | dict(sac or {}))),
        train=TrainConfig(**({"warmup_steps": 8} | dict(train or {}))),
        replay=ReplayConfig(**({"capacity_per_task": 64} | dict(replay or {}))),
    )


def spec(tasks: int = TASKS, envs_per_task: int = 1, obs: int = OBS, action: int = ACTION) -> TaskSpec:
    return TaskSpec(tuple(f"task {number}" for number in range(tasks)), envs_per_task, obs, action)


def sac_update(config: Config, *, tasks: int = TASKS, device: torch.device = CPU) -> SACUpdate:
    return SACUpdate(config, spec(tasks), device)


def sac_agent(
    config: Config, *, tasks: int = TASKS, envs_per_task: int = 1, device: torch.device = CPU
) -> SACAgent:
    return SACAgent(config, spec(tasks, envs_per_task), device)
