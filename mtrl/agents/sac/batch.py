"""Shape letters and the tuples that travel between stages.

Letters: T tasks, E envs per task, B batch per task, O observation (39), A action (4), P parameters of one
network, S stacked networks (2 for the twin critics). T is the first axis wherever tasks are kept apart.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
