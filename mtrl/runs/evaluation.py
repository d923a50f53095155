"""Outcome of one evaluation: every task, every episode."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Evaluation(NamedTuple):
    """Episodes of one evaluation, tasks first; N episodes per task.

    Success follows Meta-World: an episode succeeds when the task's success flag is up at ANY step. The flag
    at the last step is kept next to it, because published numbers use either rule.
    """

    task_names: tuple[str, ...]  # T
    success: NDArray[np.float64]  # [T, N], 1 or 0, at any step of the episode; NaN: the task knows none
    success_last: NDArray[np.float64]  # [T, N], at the episode's last step
    episode_return: NDArray[np.float64]  # [T, N], undiscounted sum of unscaled rewards

    @property
    def episodes_per_task(self) -> int:
        """N."""
        return int(self.success.shape[1])

    @property
    def mean_success(self) -> float:
        """Any-step success rate in [0, 1], over tasks and episodes; NaN if a task knows no success."""
        return float(self.success.mean())

    @property
    def mean_success_last(self) -> float:
        """Last-step success rate in [0, 1], over tasks and episodes; NaN if a task knows no success."""
        return float(self.success_last.mean())

    @property
    def mean_return(self) -> float:
        """Mean episode return over tasks and episodes."""
        return float(self.episode_return.mean())

    @property
    def score(self) -> float:
        """What a better policy has more of: success, or the return where a task knows no success."""
        return self.mean_return if np.isnan(self.mean_success) else self.mean_success

    def task_means(self) -> dict[str, dict[str, float]]:
        """Means over the episodes: "success", "success_last", "return" -> task name -> value."""
        tables = {"success": self.success, "success_last": self.success_last, "return": self.episode_return}
        return {
            group: dict(zip(self.task_names, table.mean(axis=1).tolist(), strict=True))
            for group, table in tables.items()
        }
