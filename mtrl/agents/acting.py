"""A policy on a device, called with observations on the host."""

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrl.agents.base import TaskSpec
from mtrl.device.cpu import one_thread
from mtrl.device.cuda import GraphedStep, SideStream, Staging
from mtrl.errors import UserError


class ActingPolicy:
    """Maps observations [T*E, O] to actions [T*E, A] in [-1, 1]; on CUDA a graph between two copies.

    Args:
        act: maps observations [T, E, O] and noise [T, E, A] to actions [T, E, A]; each call uses the
            parameters that it has then.
        spec: sizes.
        draw: overwrites a tensor with the actions' noise; None: the noise is 0.
        device: of the parameters.
        side_stream: to act on; None: the current stream.
    """

    def __init__(
        self,
        act: Callable[[Tensor, Tensor], Tensor],
        spec: TaskSpec,
        draw: Callable[[Tensor], Tensor] | None,
        device: torch.device,
        side_stream: SideStream | None = None,
    ) -> None:
        self._act, self._draw, self._side_stream = act, draw, side_stream
        lead = (spec.num_tasks, spec.envs_per_task)
        self._obs = torch.zeros(*lead, spec.obs_dim, device=device)
        self._noise = torch.zeros(*lead, spec.action_dim, device=device)
        self._action = torch.zeros_like(self._noise)
        self._to_device, self._to_host = Staging(self._obs), Staging(self._action)
        self._graphed = GraphedStep(self._step, device, what="acting")

    def __call__(self, obs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the actions as a new array; waits for the device.

        Raises:
            UserError: observations of another shape.
        """
        tasks, copies, size = self._obs.shape
        if obs.shape != (tasks * copies, size):
            raise UserError(
                f"expected observations [{tasks * copies}, {size}], {copies} for each of {tasks} tasks; "
                f"found {list(obs.shape)}. Call policy(envs_per_task) with the number of copies stepped."
            )
        stream = nullcontext() if self._side_stream is None else self._side_stream.use()
        with one_thread(self._obs.device), stream:
            self._to_device.host.copy_(torch.from_numpy(obs).view_as(self._obs))
            self._to_device.send()
            if self._draw is not None:
                self._draw(self._noise)
            self._graphed()
            self._to_host.receive()
        action: NDArray[np.float32] = self._to_host.host.flatten(0, 1).numpy().copy()
        return action

    def _step(self) -> None:
        self._action.copy_(self._act(self._obs, self._noise))
