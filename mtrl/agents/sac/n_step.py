"""Windows of consecutive transitions in a ring, for n-step returns (Sutton, 1988). Knows no SAC."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


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
