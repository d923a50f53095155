"""Windows of consecutive transitions in a ring, for n-step returns (Sutton, 1988). Knows no SAC."""

from __future__ import annotations

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
    tasks = len(index)
    capacity = len(reward) // tasks
    offset = torch.arange(steps, device=index.device)
    first_row = torch.arange(tasks, device=index.device).view(-1, 1, 1) * capacity
    rows = (index.unsqueeze(-1) + offset * stride) % capacity + first_row
    ahead = (newest - index // stride) % (capacity // stride)  # vector steps stored after the slot's own
    stop = ended[rows]
    alive = (offset <= ahead.unsqueeze(-1)) & (stop.cumsum(-1) - stop.long() == 0)
    weight = alive * gamma ** offset.to(reward.dtype)
    total = (reward[rows] * weight).sum(-1)
    length = alive.sum(-1)
    last = rows.gather(-1, (length - 1).unsqueeze(-1)).squeeze(-1)
    return Windows(total, last, gamma ** length.to(reward.dtype))
