"""Per-task ring buffers on the training device, and the batches drawn from them. Rewards are stored raw.

Letters: T tasks, E envs per task, B batch per task, O observation, A action. T is the first axis everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.device.memory import free_memory
from mtrl.device.random_stream import RandomStream
from mtrl.device.staging import Staging
from mtrl.errors import UserError

EMA_RATE = 1e-3  # mtrl's reward normaliser (protocols: running second moment per task, no centring)


class Batch(NamedTuple):
    """Transitions sampled from replay, `batch_per_task` of each task."""

    obs: Tensor  # [T, B, O]
    action: Tensor  # [T, B, A]
    reward: Tensor  # [T, B]
    next_obs: (
        Tensor  # [T, B, O], the true successor: an episode's last transition holds its final observation
    )
    not_terminated: Tensor  # [T, B], 0 only where the task itself ended the episode; truncation bootstraps

    def of_tasks(self, tasks: Tensor | None) -> Batch:
        """The samples [N, B, ...] of the tasks of an index tensor [N]; None: of all tasks."""
        return self if tasks is None else Batch(*(part.index_select(0, tasks) for part in self))


class Replay:
    """One ring of transitions per task; all rings advance together by E transitions per vector step.

    Args:
        num_tasks: T.
        capacity_per_task: C, rounded down to a multiple of E so that a vector step never splits.
        envs_per_task: E.
        obs_dim: O.
        action_dim: A.
        device: where transitions live and batches appear.
        seed: of the sampling stream.
        reward_scaling: `none`; `ema`, divide sampled rewards by a running deviation per task, root of a mean
            square; `shrink`, the same but never multiply: a deviation below 1 counts as 1.

    Raises:
        UserError: the buffers do not fit into the device's free memory.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        capacity_per_task: int,
        envs_per_task: int,
        obs_dim: int,
        action_dim: int,
        device: torch.device,
        seed: int,
        reward_scaling: str = "none",
    ) -> None:
        self.num_tasks, self.obs_dim, self.action_dim = num_tasks, obs_dim, action_dim
        self.capacity = max(capacity_per_task // envs_per_task, 1) * envs_per_task
        # One row per transition: obs, action, reward, not_terminated, next_obs. One gather samples all.
        self._widths = [obs_dim, action_dim, 1, 1, obs_dim]
        self._reward_column = obs_dim + action_dim
        needed = replay_bytes(num_tasks, self.capacity, obs_dim, action_dim)
        free = free_memory(device)
        if needed > 0.9 * free:
            raise UserError(
                f"the replay buffers need {needed / 2**30:.2f} GiB on {device} ({num_tasks} tasks x "
                f"{self.capacity} transitions), but {free / 2**30:.2f} GiB are free. "
                f"Lower replay.capacity_per_task to {int(0.8 * free / needed * self.capacity)} or less."
            )
        self._rows = torch.zeros(num_tasks, self.capacity, sum(self._widths), device=device)
        self._first_row = torch.arange(num_tasks, device=device).unsqueeze(1) * self.capacity
        self._next = 0
        self.size = 0
        self._stream = RandomStream(seed, device)
        self._incoming = torch.zeros(num_tasks, envs_per_task, sum(self._widths), device=device)
        self._staging = Staging(self._incoming)
        self._smallest_deviation = {"none": None, "ema": 1e-8, "shrink": 1.0}[reward_scaling]
        self._second_moment = torch.ones(num_tasks, device=device)

    def add(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        next_obs: Tensor,
        terminated: Tensor,
        lost: Tensor | None = None,
    ) -> None:
        """Store E transitions per task: [T, E, O], [T, E, A], [T, E], [T, E, O], [T, E].

        next_obs is the true successor (the final observation of an episode that ended); terminated is 1 only
        where the task itself ended the episode, never for the time limit.

        lost, bool [T, E], marks rows that are no transition: their environment was restarted. All rings
        advance together, so something must stand in their slots: the copy's transition of the step before,
        which is a true one of the same task. Its only effect is that it is drawn twice as often as others
        while both last; zeros or an invented successor would teach the critic what no task does.
        Before the first transition there is none to repeat, and the whole step is left out.
        """
        envs = obs.shape[1]
        parts = (obs, action, reward.unsqueeze(-1), 1.0 - terminated.float().unsqueeze(-1), next_obs)
        self._staging.wait()
        torch.cat(parts, dim=-1, out=self._staging.host)
        self._staging.send()
        rows = self._incoming
        if lost is not None and lost.any():
            if self.size == 0:
                return
            newest = (self._next - envs) % self.capacity
            known = self._rows[:, newest : newest + envs]
            rows = torch.where(lost.to(rows.device).unsqueeze(-1), known, rows)
        self._rows[:, self._next : self._next + envs] = rows
        self._next = (self._next + envs) % self.capacity
        self.size = min(self.size + envs, self.capacity)
        if self._smallest_deviation is not None:
            self._second_moment.lerp_(rows[..., self._reward_column].square().mean(1), EMA_RATE)

    def sample(self, batch_per_task: int) -> Batch:
        """Draw transitions uniformly with replacement, independent ones for each task.

        Raises:
            ValueError: fewer than batch_per_task transitions are stored per task.
        """
        empty = torch.empty(self.num_tasks, batch_per_task, dtype=torch.int64, device=self._rows.device)
        return self.gather(self.draw(empty))

    def draw(self, index: Tensor) -> Tensor:
        """Overwrite index [T, B] with uniformly drawn slots, what `gather` takes, and return it.

        Raises:
            ValueError: fewer than B transitions are stored per task.
        """
        if self.size < index.shape[1]:
            raise ValueError(f"cannot sample {index.shape[1]} transitions per task: {self.size} are stored.")
        return torch.randint(self.size, index.shape, generator=self._stream.generator, out=index)

    def gather(self, index: Tensor) -> Batch:
        """Return the transitions in slots [T, B] of each task's ring."""
        flat = (index + self._first_row).flatten()
        rows = self._rows.view(-1, self._rows.shape[-1]).index_select(0, flat).view(*index.shape, -1)
        obs, action, reward, not_terminated, next_obs = torch.split(rows, self._widths, dim=-1)
        reward = reward.squeeze(-1)
        if self._smallest_deviation is not None:
            deviation = self._second_moment.sqrt().clamp(min=self._smallest_deviation)
            reward = reward / deviation.unsqueeze(1)
        return Batch(obs, action, reward, next_obs, not_terminated.squeeze(-1))

    def state_dict(self) -> dict[str, Any]:
        """Return the stored transitions and everything later sampling depends on."""
        return {
            "rows": self._rows[:, : self.size],
            "next": self._next,
            "size": self.size,
            "stream": self._stream.state(),
            "second_moment": self._second_moment,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict` of a buffer of the same shape."""
        self.size, self._next = state["size"], state["next"]
        self._rows[:, : self.size] = state["rows"].to(self._rows.device)
        self._stream.load_state(state["stream"])
        self._second_moment.copy_(state["second_moment"])


def replay_bytes(num_tasks: int, capacity: int, obs_dim: int, action_dim: int) -> int:
    """Bytes of float32 buffers for num_tasks x capacity transitions."""
    return 4 * num_tasks * capacity * (2 * obs_dim + action_dim + 2)
