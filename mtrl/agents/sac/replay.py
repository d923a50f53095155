"""Ring buffers of transitions on the training device, one per task, and the batches drawn from them.

Letters: T tasks, C transitions per task, E envs per task, B batch per task, O observation, A action. T is the
first axis everywhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.agents.sac.curriculum import Curriculum, spread
from mtrl.agents.sac.returns import ReturnScale, windows
from mtrl.device.cuda import GraphedStep, Staging
from mtrl.device.random_stream import RandomStream
from mtrl.device.resources import free_memory
from mtrl.errors import UserError

PIECE_BYTES = 16 << 20  # of a saved ring: saving a piece holds the interpreter, and training waits
EMA_RATE = 1e-3  # of the running moments of rewards (docs/protocols.md)


class Batch(NamedTuple):
    """Transitions sampled from replay, `batch_per_task` of each task."""

    obs: Tensor  # [T, B, O]
    action: Tensor  # [T, B, A]
    reward: Tensor  # [T, B]
    next_obs: Tensor  # [T, B, O], the true successor: after an episode's last action its final observation
    not_terminated: Tensor  # [T, B], 0 only where the task itself ended the episode, never for a time limit
    discount: Tensor | None = None  # [T, B], of the value at next_obs; None: gamma, one step

    def of_tasks(self, tasks: Tensor | None) -> Batch:
        """Return the samples [N, B, ...] of the tasks of an index [N]; None: of all tasks."""
        if tasks is None:
            return self
        return Batch._make(part if part is None else part.index_select(0, tasks) for part in self)


class Replay:
    """One ring of transitions per task; all rings advance together by E transitions per vector step.

    Rewards are stored raw. Sampled rewards are divided by a scale of their task.

    Args:
        num_tasks: T.
        capacity_per_task: C, rounded down to a multiple of E so that no vector step wraps around.
        envs_per_task: E.
        obs_dim: O.
        action_dim: A.
        device: of the transitions and batches.
        seed: of the sampling stream.
        reward_scaling: `none`; `ema`, by a running standard deviation; `shrink`, by the root of a running
            mean square, but at least by 1; `return`, by the range of discounted returns
            (`returns.ReturnScale`).
        return_bound: of the scaled returns (`return` alone).
        return_quantile: of a task's returns, at which they are clipped before that range is measured
            (`return` alone); None: they are not.
        n_step: rewards summed before the bootstrap (`returns.windows`).
        gamma: discount per env step, of returns and of n-step windows.
        curriculum: quantile of a task's TD errors up to which transitions are drawn at the start of a run
            (`curriculum.Curriculum`); 1 draws all with equal probability.

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
        return_bound: float = 10.0,
        return_quantile: float | None = None,
        n_step: int = 1,
        gamma: float = 0.99,
        curriculum: float = 1.0,
    ) -> None:
        self.num_tasks, self.obs_dim, self.action_dim = num_tasks, obs_dim, action_dim
        self.capacity = max(capacity_per_task // envs_per_task, 1) * envs_per_task
        # One row per transition, so that one gather samples it.
        self._widths = _widths(obs_dim, action_dim)
        self._reward_column = obs_dim + action_dim
        needed = replay_bytes(num_tasks, self.capacity, obs_dim, action_dim)
        free = free_memory(device)
        if needed > 0.9 * free:
            raise UserError(
                f"the replay buffers need {needed / 2**30:.2f} GiB on {device} ({num_tasks} tasks x "
                f"{self.capacity} transitions), but may use only 90 % of the {free / 2**30:.2f} GiB free. "
                f"Lower replay.capacity_per_task to {int(0.8 * free / needed * self.capacity)} or less."
            )
        self._rows = torch.zeros(num_tasks, self.capacity, sum(self._widths), device=device)
        self._first_row = torch.arange(num_tasks, device=device).unsqueeze(1) * self.capacity
        self._views: weakref.WeakSet[RingView] = weakref.WeakSet()  # of checkpoints being written
        self._next = 0
        self.size = 0
        self._stream = RandomStream(seed, device)
        # Behind a transition's numbers two flags: end of the episode, and not a transition.
        self._incoming = torch.zeros(num_tasks, envs_per_task, sum(self._widths) + 2, device=device)
        self._staging = Staging(self._incoming)
        self._centred = reward_scaling == "ema"
        self._smallest_deviation = {"ema": 1e-8, "shrink": 1.0}.get(reward_scaling)
        self._return_scale: ReturnScale | None = None
        if reward_scaling == "return":
            self._return_scale = ReturnScale(
                num_tasks=num_tasks,
                envs_per_task=envs_per_task,
                gamma=gamma,
                bound=return_bound,
                device=device,
                quantile=return_quantile,
            )
        self._n_step, self._gamma, self._envs = n_step, gamma, envs_per_task
        slots = self.capacity if n_step > 1 else 0  # only windows ask where episodes end
        self._ended = torch.zeros(num_tasks, slots, dtype=torch.bool, device=device)
        # Place in the ring of the vector step written last: a tensor, since graphs read and write it.
        self._newest = torch.full((), self.capacity // envs_per_task - 1, device=device)
        self._columns = torch.arange(envs_per_task, device=device)
        self._write = GraphedStep(self._store, device, what="storing transitions")
        self._mean_reward = torch.zeros(num_tasks, device=device)  # stays 0 with `shrink`
        self._second_moment = torch.ones(num_tasks, device=device)  # about it
        self.curriculum: Curriculum | None = None
        if curriculum < 1.0:
            self.curriculum = Curriculum(
                num_tasks=num_tasks, capacity=self.capacity, start=curriculum, device=device
            )

    def add(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        next_obs: Tensor,
        terminated: Tensor,
        *,
        ended: Tensor | None = None,
        lost: Tensor | None = None,
    ) -> None:
        """Store E transitions per task: [T, E, O], [T, E, A], [T, E], [T, E, O], [T, E].

        Args:
            obs: observations.
            action: actions.
            reward: raw rewards.
            next_obs: true successors, of an episode that ended its final observation.
            terminated: 1 only where the task itself ended the episode, never for the time limit.
            ended: bool [T, E], where the task or the time limit ended the episode; default: `terminated`.
            lost: bool [T, E], rows that are no transition, because their environment was restarted. All rings
                advance together, so such a slot gets a copy of the environment's transition of the step
                before. The copy is a true transition; it is drawn twice as often while both are stored. Zeros
                or an invented successor would be false data for the critic. If there is no step before, the
                whole vector step is left out.
        """
        envs = obs.shape[1]
        ended = terminated > 0 if ended is None else ended
        flags = (ended, torch.zeros_like(ended) if lost is None else lost)
        columns = (reward, 1.0 - terminated.float(), *(flag.float() for flag in flags))
        reward, going_on, *flags_on_host = (column.unsqueeze(-1) for column in columns)
        self._staging.wait()
        # One copy from pinned memory: a copy of its own from pageable memory would wait for the device.
        torch.cat((obs, action, reward, going_on, next_obs, *flags_on_host), dim=-1, out=self._staging.host)
        self._staging.send()
        first_is_lost = self.size == 0 and lost is not None and bool(lost.any())
        if not first_is_lost:
            for view in tuple(self._views):
                view.keep(self._next, self._rows[:, self._next : self._next + envs])  # soon overwritten
            self._next = (self._next + envs) % self.capacity
            self.size = min(self.size + envs, self.capacity)
        self._write(not first_is_lost)

    def _store(self, complete: bool) -> None:
        """Take in the rows that have come; unless they are `complete`, only for the scale of returns."""
        rows, (ended, lost) = self._incoming[..., :-2], (self._incoming[..., -2:] > 0).unbind(-1)
        if self._return_scale is not None:
            self._return_scale.add(rows[..., self._reward_column], ended, lost)
        if not complete:
            return
        before = self._newest * self._envs + self._columns
        self._newest.add_(1).remainder_(self.capacity // self._envs)
        slots = self._newest * self._envs + self._columns
        rows = torch.where(lost.unsqueeze(-1), self._rows.index_select(1, before), rows)
        self._rows.index_copy_(1, slots, rows)
        if self._n_step > 1:
            # The lost transition is not stored: no window may cross from the step before it to the next slot.
            self._ended.index_copy_(1, before, self._ended.index_select(1, before) | lost)
            self._ended.index_copy_(1, slots, ended | lost)
        if self.curriculum is not None:
            self.curriculum.forget(slots)
        if self._smallest_deviation is not None:
            reward = rows[..., self._reward_column]
            if self._centred:
                self._mean_reward.lerp_(reward.mean(1), EMA_RATE)
            spread = (reward - self._mean_reward.unsqueeze(1)).square().mean(1)
            self._second_moment.lerp_(spread, EMA_RATE)

    def sample(self, batch_per_task: int) -> Batch:
        """Draw and gather a batch; raises as `draw`."""
        empty = torch.empty(self.num_tasks, batch_per_task, dtype=torch.int64, device=self._rows.device)
        return self.gather(self.draw(empty))

    def draw(self, index: Tensor) -> Tensor:
        """Overwrite index [T, B] with slots for `gather`, and return it.

        Slots are drawn with replacement, uniformly or, with a curriculum, among those that it admits.

        Raises:
            ValueError: fewer than B transitions are stored per task.
        """
        if self.size < index.shape[1]:
            raise ValueError(f"cannot sample {index.shape[1]} transitions per task: {self.size} are stored.")
        if self.curriculum is not None:
            return self.curriculum.draw(index, self.size, self._stream.generator)
        return torch.randint(self.size, index.shape, generator=self._stream.generator, out=index)

    def gather(self, index: Tensor) -> Batch:
        """Return the transitions in slots [T, B] of each task's ring; reads nothing back to the host."""
        stored = self._rows.view(-1, self._rows.shape[-1])
        flat = (index + self._first_row).flatten()
        rows = stored.index_select(0, flat).view(*index.shape, -1)
        obs, action, reward, not_terminated, next_obs = torch.split(rows, self._widths, dim=-1)
        reward, discount = reward.squeeze(-1), None
        if self._n_step > 1:
            rewards, ended = stored[:, self._reward_column], self._ended.view(-1)
            sizes = {"steps": self._n_step, "stride": self._envs}
            reward, last, discount = windows(index, self._newest, rewards, ended, **sizes, gamma=self._gamma)
            ends = stored.index_select(0, last.flatten()).view(*index.shape, -1)
            not_terminated, next_obs = torch.split(ends, self._widths, dim=-1)[3:]
        if (scale := self.reward_scale) is not None:
            reward = reward / scale.unsqueeze(1)
        return Batch(obs, action, reward, next_obs, not_terminated.squeeze(-1), discount)

    def high_reward_share(self) -> Tensor:
        """Share [T] of the newest tenth of each task's rewards that lie above its 90th percentile.

        About 0.1 while nothing changes and 0 while a task gets worse. It rises before the returns do when a
        task begins to be rewarded. The percentile is that of at most 4,096 rewards.
        """
        if self.size == 0:
            return torch.zeros(self.num_tasks, device=self._rows.device)
        rewards = self._rows[:, : self.size, self._reward_column]
        bound = rewards[:, spread(self.size, rewards.device)].quantile(0.9, dim=1, keepdim=True)
        newest = torch.arange(1, max(self.size // 10, 1) + 1, device=self._rows.device)
        recent = rewards[:, (self._next - newest) % self.size]
        return (recent > bound).float().mean(1)

    @property
    def observations(self) -> Tensor:
        """The observations stored, [T, size, O]."""
        return self._rows[:, : self.size, : self.obs_dim]

    @property
    def reward_scale(self) -> Tensor | None:
        """The divisor [T] of sampled rewards; None: they are raw."""
        if self._return_scale is not None:
            return self._return_scale.scale
        if self._smallest_deviation is not None:
            return self._second_moment.sqrt().clamp(min=self._smallest_deviation)
        return None

    def state_parts(self) -> dict[str, Any]:
        """Return the parts of a checkpoint: "replay", and functions that return pieces of the ring.

        The functions return the present content, also when called later and from another thread.
        """
        view = RingView(self._rows, self.size)
        self._views.add(view)
        part: dict[str, Any] = {
            "ended": self._ended[:, : self.size],
            "next": self._next,
            "size": self.size,
            "stream": self._stream.state(),
            "second_moment": self._second_moment,
            "mean_reward": self._mean_reward,
        }
        if self._return_scale is not None:
            part["return_scale"] = self._return_scale.state_dict()
        if self.curriculum is not None:
            part["curriculum"] = self.curriculum.state(self.size)
        return {"replay": part, **{f"replay_{number}": piece for number, piece in view.pieces().items()}}

    def load_state_parts(self, parts: Mapping[str, Any]) -> None:
        """Restore `state_parts` of a buffer of the same shape; pieces may be functions or their results."""
        state = parts["replay"]
        self.size, self._next = state["size"], state["next"]
        for name, part in parts.items():
            if name.startswith("replay_"):
                self._load_piece(part() if callable(part) else part)
        self._stream.load_state(state["stream"])
        self._second_moment.copy_(state["second_moment"])
        self._mean_reward.copy_(state["mean_reward"])
        self._ended[:, : self.size] = state["ended"].to(self._ended.device)
        self._newest.fill_((self._next - self._envs) % self.capacity // self._envs)
        if self._return_scale is not None:
            self._return_scale.load_state_dict(state["return_scale"])
        if self.curriculum is not None:
            self.curriculum.load_state(state["curriculum"])

    def _load_piece(self, piece: Mapping[str, Any]) -> None:
        first, rows = piece["first"], piece["rows"]
        self._rows[:, first : first + rows.shape[1]] = rows.to(self._rows.device)


class RingView:
    """Slots 0 to `size` of a ring [T, C, W] as they are now, read in pieces while the ring is written to.

    A checkpoint of a gigabyte takes seconds to hash and write. Training must not wait for it, and a copy of
    the whole ring would double the memory. So the replay hands the rows that it is about to overwrite to
    every view still in use. A piece is copied from the ring, then the overwritten rows are put back.

    Args:
        ring: the live tensor. On CUDA it is copied to the host at once: a copy from another thread could
            fall into the capture of a graph, and the bus is faster than any disk.
        size: slots in use.
    """

    def __init__(self, ring: Tensor, size: int) -> None:
        self._ring, self._size = ring[:, :size], size
        if ring.device.type != "cpu":
            self._ring = self._ring.cpu()
        self._kept: list[tuple[int, Tensor]] = []  # first slot and rows, in the order of being overwritten

    def keep(self, first: int, rows: Tensor) -> None:
        """Keep a copy of the rows [T, E, W] from slot `first` on, which are about to be overwritten."""
        if self._ring.device == rows.device and first < self._size:
            self._kept.append((first, rows.clone()))

    def pieces(self) -> dict[int, Callable[[], dict[str, Any]]]:
        """Return piece number -> a function that returns the piece: its `first` slot and its `rows`."""
        tasks, _, width = self._ring.shape
        slots = max(1, PIECE_BYTES // (tasks * width * self._ring.element_size()))
        return {
            number: lambda first=first: self._piece(first, min(first + slots, self._size))  # type: ignore[misc]
            for number, first in enumerate(range(0, self._size, slots))
        }

    def _piece(self, first: int, end: int) -> dict[str, Any]:
        rows = self._ring[:, first:end].clone()
        # The newest first: if a slot was overwritten twice, its oldest content must win.
        for start, kept in reversed(self._kept):
            low, high = max(start, first), min(start + kept.shape[1], end)
            if low < high:
                rows[:, low - first : high - first] = kept[:, low - start : high - start]
        return {"first": first, "rows": rows}


def replay_bytes(num_tasks: int, capacity: int, obs_dim: int, action_dim: int) -> int:
    """Bytes of float32 buffers for num_tasks x capacity transitions."""
    return 4 * num_tasks * capacity * sum(_widths(obs_dim, action_dim))


def _widths(obs_dim: int, action_dim: int) -> list[int]:
    """Columns: obs, action, reward, not_terminated, next_obs."""
    return [obs_dim, action_dim, 1, 1, obs_dim]
