"""The parts of a run, built from its Config, and the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mtrl.agents import AGENTS
from mtrl.agents.base import Agent, Floats, TaskSpec
from mtrl.config.schema import Config
from mtrl.envs import TaskVectorEnv, build_suite
from mtrl.envs.engine.supervision import Report
from mtrl.envs.suite import TaskSuite
from mtrl.runs import console
from mtrl.training.rollout import RolloutStatistics


class Parts:
    """Everything whose state a checkpoint holds."""

    def __init__(self, config: Config, envs: TaskVectorEnv, device: torch.device) -> None:
        self.envs = envs
        self.agent = build_agent(config, envs, device)
        self.rollout = RolloutStatistics(envs.num_tasks, config.env.envs_per_task)
        self.obs: Floats | None = None
        self.restarts = 0  # of workers, in all processes of the run
        self.restart_steps: list[int] = []  # vector steps that lost episodes to a worker that was replaced

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: the agent's parts, the environments and the loop's own numbers."""
        return {
            **self.agent.state(),
            "envs": self.envs.get_state(),
            "loop": {
                "obs": self.obs,
                "rollout": self.rollout.state_dict(),
                "restarts": self.restarts,
                "restart_steps": self.restart_steps,
            },
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`."""
        self.agent.load_state(state)
        # Whoever read the checkpoint has compared the versions, unless it was told not to.
        self.envs.set_state(state["envs"], any_version=True)
        loop = state["loop"]
        self.obs = np.array(loop["obs"])
        self.rollout.load_state_dict(loop["rollout"])
        self.restarts, self.restart_steps = loop["restarts"], list(loop["restart_steps"])


def suite_of(config: Config) -> TaskSuite:
    """Return the run's suite of tasks.

    Raises:
        UserError: no such suite, option or task.
    """
    return build_suite(
        config.suite, config.tasks, num_goals=config.env.num_goals, options=config.suite_options
    )


def build_envs(
    config: Config,
    *,
    num_workers: int | None,
    evaluation: bool = False,
    report: Report = console.warning,
) -> TaskVectorEnv:
    """Start environments of the run's protocol in num_workers processes; None: one per available core.

    Those for evaluation may have longer episodes (`eval.max_episode_steps`). `report` is told of restarts.
    """
    env = config.env
    own_steps = config.eval.max_episode_steps if evaluation else None
    return TaskVectorEnv(
        suite_of(config),
        seed=config.seed,
        envs_per_task=env.envs_per_task,
        num_workers=num_workers,
        max_episode_steps=own_steps or env.max_episode_steps,
        step_timeout=env.step_timeout,
        max_restarts=env.max_restarts,
        worker_niceness=env.worker_niceness,
        report=report,
    )


def build_agent(config: Config, tasks: TaskSuite | TaskVectorEnv, device: torch.device) -> Agent:
    """Make a fresh agent for the run's tasks."""
    spec = TaskSpec(tuple(tasks.task_names), config.env.envs_per_task, tasks.obs_dim, tasks.action_dim)
    agent: Agent = AGENTS[config.agent](config, spec, device)
    return agent
