"""What the newest policy has met: N vector steps of all environments, and what an update makes of them.

Letters: T tasks, N vector steps, E copies of each task, R = N * E rows of each task, O observation, A action.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.device.cuda import Staging
from mtrl.device.resources import check_fits


class Minibatch(NamedTuple):
    """Rows of a rollout, equally many of each task."""

    obs: Tensor  # [T, B, O]
    raw: Tensor  # [T, B, A], samples of the policy before squashing
    log_prob: Tensor  # [T, B], their log-density under the policy that drew them
    advantage: Tensor  # [T, B]
    target: Tensor  # [T, B], of the critic's outputs
    weight: Tensor  # [T, B], 0 for a lost row, else 1

    def of_tasks(self, tasks: Tensor | None) -> Minibatch:
        """Return the rows [N, B, ...] of the tasks of an index [N]; None: of all tasks."""
        return self if tasks is None else Minibatch._make(part.index_select(0, tasks) for part in self)


class Rollout:
    """N vector steps, one row per transition, which a single gather reads.

    Successors are stored, on the host, only of the rows that ended an episode and of the last vector step:
    elsewhere the next row has them.

    Args:
        num_tasks: T.
        envs_per_task: E.
        steps: N.
        obs_dim: O.
        action_dim: A.
        device: of the rows.

    Attributes:
        position: vector steps stored.

    Raises:
        UserError: the rows do not fit into the device's free memory.
    """

    def __init__(
        self,
        *,
        num_tasks: int,
        envs_per_task: int,
        steps: int,
        obs_dim: int,
        action_dim: int,
        device: torch.device,
    ) -> None:
        self.num_tasks, self.envs, self.steps, self.obs_dim = num_tasks, envs_per_task, steps, obs_dim
        self._widths = _widths(obs_dim, action_dim)
        check_fits(
            rollout_bytes(num_tasks, envs_per_task * steps, obs_dim, action_dim, device),
            device,
            what="the rollout's rows",
            advice="Lower ppo.rollout_steps or env.envs_per_task.",
        )
        self.rows = torch.zeros(num_tasks, steps * envs_per_task, sum(self._widths), device=device)
        self._first_row = torch.arange(num_tasks, device=device).unsqueeze(1) * self.rows.shape[1]
        # From the host come observation, reward and flags; the device has the raw actions already.
        self._incoming = torch.zeros(num_tasks, envs_per_task, obs_dim + 4, device=device)
        self._staging = Staging(self._incoming)
        self._successors: dict[int, Tensor] = {}  # vector step -> [K, O], of the rows of `_stores`
        self.position = 0

    @property
    def full(self) -> bool:
        """Whether all N vector steps are stored."""
        return self.position == self.steps

    def add(
        self,
        obs: Tensor,
        raw: Tensor,
        reward: Tensor,
        next_obs: Tensor,
        terminated: Tensor,
        *,
        ended: Tensor,
        lost: Tensor,
    ) -> None:
        """Store one vector step: [T, E, O], [T, E, A], [T, E], [T, E, O], and flags [T, E].

        All but `raw` are on the host. `next_obs` are the true successors; a `lost` row is no transition.
        """
        columns = (reward, terminated.float(), ended.float(), lost.float())
        self._staging.wait()
        torch.cat((obs, *(column.unsqueeze(-1) for column in columns)), dim=-1, out=self._staging.host)
        self._staging.send()
        first = self.position * self.envs
        rows = self.rows[:, first : first + self.envs]
        after_raw = self.obs_dim + raw.shape[-1]
        rows[..., : self.obs_dim] = self._incoming[..., : self.obs_dim]
        rows[..., self.obs_dim : after_raw] = raw
        rows[..., after_raw : after_raw + 4] = self._incoming[..., self.obs_dim :]
        rows[..., after_raw + 4 :] = 0.0  # of the rollout before, which a checkpoint should not hold
        stored = ended | (self.position == self.steps - 1)
        if bool(stored.any()):
            self._successors[self.position] = next_obs[stored]
        self.position += 1

    def clear(self) -> None:
        """Forget all rows."""
        self.position = 0
        self._successors.clear()

    def successors(self) -> Iterator[tuple[int, Tensor]]:
        """Yield steps of a full rollout whose next rows lack some successors, and successors [T, E, O]."""
        obs = self.obs.unflatten(1, (self.steps, self.envs))
        for step, found in self._successors.items():
            whole = obs[:, min(step + 1, self.steps - 1)].clone()
            whole[self._stores(step)] = found.to(whole)
            yield step, whole

    def _stores(self, step: int) -> Tensor:
        """Return for which rows [T, E] of a vector step successors are stored."""
        first = step * self.envs
        ended = self._columns[2][:, first : first + self.envs, 2] > 0
        return ended | (step == self.steps - 1)

    @property
    def _columns(self) -> tuple[Tensor, ...]:
        """Views of observations, raw actions, outcomes and what an update learns from."""
        return torch.split(self.rows, self._widths, dim=-1)

    @property
    def obs(self) -> Tensor:
        """Observations [T, R, O]."""
        return self._columns[0]

    @property
    def raw(self) -> Tensor:
        """Raw actions [T, R, A]."""
        return self._columns[1]

    @property
    def outcome(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reward, and bool terminated, ended and lost, each [T, N, E]."""
        columns = self._columns[2].unflatten(1, (self.steps, self.envs))
        reward, *flags = columns.unbind(-1)
        terminated, ended, lost = (flag > 0 for flag in flags)
        return reward, terminated, ended, lost

    @property
    def weight(self) -> Tensor:
        """Weights [T, R]: 0 for a lost row, else 1."""
        return 1.0 - self._columns[2][..., 3]

    @property
    def learnt_from(self) -> tuple[Tensor, Tensor, Tensor]:
        """Views [T, R] of log-probability, advantage and target, to be filled before `gather`."""
        log_prob, advantage, target = self._columns[3].unbind(-1)
        return log_prob, advantage, target

    def gather(self, index: Tensor) -> Minibatch:
        """Return the rows of an index [T, B] within each task; reads nothing back to the host."""
        flat = (index + self._first_row).flatten()
        rows = self.rows.view(-1, self.rows.shape[-1]).index_select(0, flat).view(*index.shape, -1)
        obs, raw, outcome, learnt = torch.split(rows, self._widths, dim=-1)
        log_prob, advantage, target = learnt.unbind(-1)
        return Minibatch(obs, raw, log_prob, advantage, target, 1.0 - outcome[..., 3])

    def state(self) -> dict[str, Any]:
        """Return the rows and successors stored."""
        return {
            "position": self.position,
            "rows": self.rows[:, : self.position * self.envs],
            "successors": {str(step): value for step, value in self._successors.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state` of a rollout of the same shape."""
        self.position = state["position"]
        self.rows[:, : self.position * self.envs] = state["rows"].to(self.rows.device)
        self._successors = {int(step): found.clone() for step, found in state["successors"].items()}


def rollout_bytes(num_tasks: int, rows: int, obs_dim: int, action_dim: int, device: torch.device) -> int:
    """Bytes on the device of float32 rows of `rows` transitions of each task.

    If the device is the host, successors are among them: of all rows, since each may end an episode.
    """
    successor = obs_dim if device.type == "cpu" else 0
    return 4 * num_tasks * rows * (sum(_widths(obs_dim, action_dim)) + successor)


def _widths(obs_dim: int, action_dim: int) -> list[int]:
    """Columns: obs, raw; reward and three flags; log_prob, advantage, target."""
    return [obs_dim, action_dim, 4, 3]
