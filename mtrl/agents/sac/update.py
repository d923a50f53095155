"""One update, from the replay to the target networks, as one step on tensors that stay in place."""

from __future__ import annotations

import torch

from mtrl.agents.sac.agent import MTSAC
from mtrl.agents.sac.replay import Replay
from mtrl.device.cuda_graph import GraphedStep


class Updater:
    """Samples `num_batches` independent batches and updates the agent; on CUDA as one graph per phase.

    Random numbers are drawn before the step, from the streams of replay and agent: a captured update takes
    the same ones as an eager one, and a checkpoint holds all there is to resume.
    """

    def __init__(self, agent: MTSAC, replay: Replay, batch_per_task: int) -> None:
        self._agent, self._replay = agent, replay
        shape = (agent.num_batches, agent.num_tasks, batch_per_task)
        self._rows = torch.zeros(shape, dtype=torch.int64, device=agent.device)
        noise = (agent.num_batches, 2, agent.num_tasks, batch_per_task, agent.action_dim)
        self._noise = torch.zeros(noise, device=agent.device)
        self._graphed = GraphedStep(self._step, agent.device, what="the update", capturable=agent.capturable)

    def __call__(self) -> None:
        """Update once.

        Raises:
            ValueError: fewer than batch_per_task transitions are stored per task.
        """
        for rows in self._rows:
            self._replay.draw(rows)
        self._agent.draw(self._noise)
        self._graphed()

    def _step(self) -> None:
        self._agent.step([self._replay.gather(rows) for rows in self._rows], self._noise)
