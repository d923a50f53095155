"""The policy as a function from numpy observations to numpy actions, by way of its device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl.agents.base import TaskSpec
from mtrl.agents.sac.update import SACUpdate
from mtrl.device.cuda_graph import GraphedStep
from mtrl.device.staging import Staging


class SACPolicy:
    """Maps observations [T*E, O] to actions [T*E, A] in [-1, 1]; on CUDA one graph between two copies.

    Args:
        update: whose policy it is, with the parameters of the moment of the call.
        spec: sizes.
        draw: overwrites a tensor with the actions' noise; None: the mode of the policy, for evaluation.
        device: where the parameters are.
    """

    def __init__(
        self,
        update: SACUpdate,
        spec: TaskSpec,
        draw: Callable[[torch.Tensor], torch.Tensor] | None,
        device: torch.device,
    ) -> None:
        self._update, self._draw = update, draw
        lead = (spec.num_tasks, spec.envs_per_task)
        self._obs = torch.zeros(*lead, spec.obs_dim, device=device)
        self._noise = None if draw is None else torch.zeros(*lead, spec.action_dim, device=device)
        self._action = torch.zeros(*lead, spec.action_dim, device=device)
        self._to_device, self._to_host = Staging(self._obs), Staging(self._action)
        self._graphed = GraphedStep(self._step, device, what="acting")

    def __call__(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the actions, an array of its own; waits for the device."""
        self._to_device.host.copy_(torch.from_numpy(obs).view_as(self._obs))
        self._to_device.send()
        if self._noise is not None and self._draw is not None:
            self._draw(self._noise)
        self._graphed()
        self._to_host.receive()
        action: NDArray[np.float32] = self._to_host.host.flatten(0, 1).numpy().copy()
        return action

    def _step(self) -> None:
        self._action.copy_(self._update.act(self._obs, self._noise))
