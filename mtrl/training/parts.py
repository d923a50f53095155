"""The parts of a run, built from its Config, and the state that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mtrl.agents.base import Floats
from mtrl.config.schema import Config
from mtrl.envs import TaskVectorEnv
from mtrl.training.resolve import build_agent
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
