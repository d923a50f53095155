"""The agent as a function from numpy observations to numpy actions, by way of its device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl.agents.sac.agent import MTSAC
from mtrl.device.cuda_graph import GraphedStep
from mtrl.device.staging import Staging


class AgentPolicy:
    """Maps observations [T*E, O] to actions [T*E, A] in [-1, 1]; on CUDA one graph between two copies.

    Args:
        agent: acts with the parameters it has at the moment of the call.
        envs_per_task: E.
        deterministic: the mode of the policy, for evaluation; else a sample, from the agent's stream.
    """

    def __init__(self, agent: MTSAC, envs_per_task: int, *, deterministic: bool) -> None:
        self._agent, self._deterministic = agent, deterministic
        lead, device = (agent.num_tasks, envs_per_task), agent.device
        self._obs = torch.zeros(*lead, agent.obs_dim, device=device)
        self._noise = torch.zeros(*lead, agent.action_dim, device=device)
        self._action = torch.zeros(*lead, agent.action_dim, device=device)
        self._to_device, self._to_host = Staging(self._obs), Staging(self._action)
        self._graphed = GraphedStep(self._step, device, what="acting")

    def __call__(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the actions, an array of its own; waits for the device."""
        self._to_device.host.copy_(torch.from_numpy(obs).view_as(self._obs))
        self._to_device.send()
        if not self._deterministic:
            self._agent.draw(self._noise)
        self._graphed()
        self._to_host.receive()
        action: NDArray[np.float32] = self._to_host.host.flatten(0, 1).numpy().copy()
        return action

    def _step(self) -> None:
        action = self._agent.act(self._obs, deterministic=self._deterministic, noise=self._noise)
        self._action.copy_(action)
