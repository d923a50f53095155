"""Returns over several steps: n-step windows in a ring, and the scale of a task's returns. Knows no SAC."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SMALLEST = 1e-3  # of the scale, in units of reward: a task that has paid nothing yet stays as it is


class Windows(NamedTuple):
    """What n steps from a transition on amount to; B samples of each of T tasks."""

    reward: Tensor  # [T, B], discounted sum of the rewards in the window
    last: Tensor  # [T, B], flat row of the window's last transition, whose successor is bootstrapped from
    discount: Tensor  # [T, B], gamma to the power of the window's length


def windows(
    index: Tensor,
    newest: Tensor,
    reward: Tensor,
    ended: Tensor,
    *,
    steps: int,
    stride: int,
    gamma: float,
) -> Windows:
    """Sum up to `steps` transitions from slots [T, B] on, none of them behind the end of an episode.

    A window ends with its episode, by termination or time limit alike, or with the newest transition stored:
    it is shorter then and bootstraps from the true successor of its last transition, with the discount of as
    many steps as it has. So no return mixes two episodes and none is biased.

    Args:
        index: slots in the ring of each task.
        newest: 0-dim, number of the vector step in the ring that was written last.
        reward: [T * C] of each task's slots; those of one vector step lie side by side.
        ended: bool [T * C], whether the episode ended with the transition.
        steps: n.
        stride: E, slots per vector step.
        gamma: discount per env step.
    """
    capacity = len(reward) // len(index)
    fixed = _constants(len(index), capacity, steps, stride, gamma, reward.dtype, index.device)
    rows = (index.unsqueeze(-1) + fixed.distance).remainder_(capacity).add_(fixed.first_row)
    ahead = (newest - index // stride).remainder_(capacity // stride)  # vector steps stored after its own
    # Whether the episode ended before the k-th transition.
    over = ended[rows[..., :-1]].cumsum(-1)
    alive = fixed.offset <= ahead.unsqueeze(-1)
    alive[..., 1:] &= over == 0
    length = alive.sum(-1, keepdim=True)
    total = (reward[rows] * (alive * fixed.power)).sum(-1)
    last = rows.gather(-1, length - 1).squeeze(-1)
    return Windows(total, last, fixed.power_of_length[length.squeeze(-1)])


class _Constants(NamedTuple):
    offset: Tensor  # [n], 0 to n - 1
    distance: Tensor  # [n], slots to the k-th transition
    first_row: Tensor  # [T, 1, 1]
    power: Tensor  # [n], gamma^k
    power_of_length: Tensor  # [n + 1]


@lru_cache
def _constants(
    tasks: int, capacity: int, steps: int, stride: int, gamma: float, dtype: torch.dtype, device: torch.device
) -> _Constants:
    offset = torch.arange(steps + 1, device=device)
    powers = gamma ** offset.to(dtype)
    first_row = torch.arange(tasks, device=device).view(-1, 1, 1) * capacity
    return _Constants(offset[:-1], offset[:-1] * stride, first_row, powers[:-1], powers)


class ReturnScale:
    """What rewards of a task are divided by so that its returns lie within +-bound.

    Every copy of every task keeps a running return G <- r + gamma G, begun anew with each episode. The scale
    of a task is max(std G, max |G| / bound), over all steps of all its copies so far: returns deviate by
    about 1 and never leave the bound (the normalisers of FastTD3, arXiv 2505.22642, and FlashSAC). Unlike
    a deviation of single rewards it does not blow up a first success after thousands of steps without one.

    Args:
        num_tasks: T.
        envs_per_task: E.
        gamma: discount per env step.
        bound: largest scaled return.
        device: where the scale is used.
    """

    def __init__(
        self, *, num_tasks: int, envs_per_task: int, gamma: float, bound: float, device: torch.device
    ) -> None:
        self._gamma, self._bound = gamma, bound
        # Double precision: sums of squares over 1e9 steps.
        zeros = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self._state = {
            "running": torch.zeros(num_tasks, envs_per_task, dtype=torch.float64, device=device),
            "count": zeros.clone(),
            "sum": zeros.clone(),
            "sum_of_squares": zeros.clone(),
            "largest": zeros.clone(),
        }
        self.scale = torch.ones(num_tasks, device=device)  # [T]

    def add(self, reward: Tensor, ended: Tensor, lost: Tensor | None = None) -> None:
        """Count one vector step: reward, end of episode and rows that are no transition, each [T, E]."""
        state = self._state
        device = self.scale.device
        running = state["running"].mul_(self._gamma).add_(reward.to(device))
        ended = ended.to(device)
        if lost is None:
            counted, known = running, float(running.shape[1])
        else:
            valid = ~lost.to(device)
            counted, known = running * valid, valid.sum(1)  # type: ignore[assignment]
            ended = ended | ~valid
        state["count"] += known
        state["sum"] += counted.sum(1)
        state["sum_of_squares"] += counted.square().sum(1)
        torch.maximum(state["largest"], counted.abs().amax(1), out=state["largest"])
        running.masked_fill_(ended, 0.0)
        mean = state["sum"] / state["count"].clamp(min=1)
        variance = state["sum_of_squares"] / state["count"].clamp(min=1) - mean.square()
        scale = torch.maximum(variance.clamp(min=0).sqrt(), state["largest"] / self._bound)
        self.scale.copy_(scale.clamp(min=_SMALLEST))

    def state_dict(self) -> dict[str, Any]:
        """Running returns, their statistics, and the scale."""
        return {**self._state, "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        for name, value in (*self._state.items(), ("scale", self.scale)):
            value.copy_(state[name])
