"""The parts of a run, built from its Config, and the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl.agents.sac.agent import MTSAC
from mtrl.agents.sac.policy import AgentPolicy
from mtrl.agents.sac.replay import Replay
from mtrl.config.schema import Config
from mtrl.envs import TaskVectorEnv, build_suite
from mtrl.envs.suite import TaskSuite
from mtrl.runs import console
from mtrl.training.rollout import RolloutStatistics


class Parts:
    """Everything whose state a checkpoint holds."""

    def __init__(self, config: Config, envs: TaskVectorEnv, device: torch.device) -> None:
        self.envs = envs
        self.replay = Replay(
            num_tasks=envs.num_tasks,
            capacity_per_task=config.replay.capacity_per_task,
            envs_per_task=envs.envs_per_task,
            obs_dim=envs.obs_dim,
            action_dim=envs.action_dim,
            device=device,
            seed=config.seed + 2,
            reward_scaling=config.replay.reward_scaling,
        )
        self.agent = build_agent(config, envs, device)
        self.rollout = RolloutStatistics(envs.num_envs)
        self.exploration = np.random.default_rng(config.seed + 3)
        self.obs: NDArray[np.float32] | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: agent, replay, environments and the loop's own numbers."""
        return {
            "agent": self.agent.training_state(),
            "replay": self.replay.state_dict(),
            "envs": self.envs.get_state(),
            "loop": {
                "obs": self.obs,
                "exploration": self.exploration.bit_generator.state,
                "rollout": self.rollout.state_dict(),
            },
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`."""
        self.agent.load_training_state(state["agent"])
        self.replay.load_state_dict(state["replay"])
        self.envs.set_state(state["envs"])
        self.obs = np.array(state["loop"]["obs"])
        self.exploration.bit_generator.state = state["loop"]["exploration"]
        self.rollout.load_state_dict(state["loop"]["rollout"])


def suite_of(config: Config) -> TaskSuite:
    """Return the run's suite of tasks.

    Raises:
        UserError: no such suite, option or task.
    """
    options = dict(config.suite_options)
    if config.suite == "metaworld":
        options.setdefault("reward_version", config.env.reward_version)
    return build_suite(config.suite, config.tasks, num_goals=config.env.num_goals, options=options)


def build_envs(config: Config, *, num_workers: int | None) -> TaskVectorEnv:
    """Start environments of the run's protocol in num_workers processes; None: one per available core."""
    env = config.env
    return TaskVectorEnv(
        suite_of(config),
        seed=config.seed,
        envs_per_task=env.envs_per_task,
        num_workers=num_workers,
        max_episode_steps=env.max_episode_steps,
        step_timeout=env.step_timeout,
        max_restarts=env.max_restarts,
        report=console.warning,
    )


def build_agent(config: Config, envs: TaskVectorEnv, device: torch.device) -> MTSAC:
    """Make a fresh agent for the run's tasks."""
    return MTSAC(
        num_tasks=envs.num_tasks,
        obs_dim=envs.obs_dim,
        action_dim=envs.action_dim,
        network=config.network,
        sac=config.sac,
        method=config.method,
        method_options=config.method_options,
        device=device,
        seed=config.seed,
    )


def make_policy(agent: MTSAC, envs: TaskVectorEnv) -> AgentPolicy:
    """Return the deterministic policy for evaluation."""
    return AgentPolicy(agent, envs.envs_per_task, deterministic=True)
