"""Returns and successes of training episodes, as they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RolloutStatistics:
    """Accumulates the episodes of T*E environments, rows in task-major order.

    Args:
        num_tasks: T.
        envs_per_task: E.
    """

    def __init__(self, num_tasks: int, envs_per_task: int) -> None:
        self._tasks, num_envs = num_tasks, num_tasks * envs_per_task
        self._return = np.zeros(num_envs, dtype=np.float64)
        self._success = np.zeros(num_envs, dtype=bool)
        self._known = True  # whether any task knows success
        # Rows: episodes, sum of returns, successes, of each task.
        self._ended: NDArray[np.float64] = np.zeros((3, num_tasks), dtype=np.float64)

    def add(
        self, reward: NDArray[np.float32], success: NDArray[np.float32], ended: NDArray[np.bool_]
    ) -> None:
        """Count one vector step: reward, success flag and end of episode, each [T*E]."""
        self._return += reward
        self._success |= success > 0
        self._known = not np.isnan(success).all()
        if ended.any():
            counts = np.stack((ended, ended * self._return, ended & self._success)).astype(np.float64)
            self._ended += counts.reshape(3, self._tasks, -1).sum(axis=2)
            self._return[ended] = 0.0
            self._success[ended] = False

    def drop(self, rows: NDArray[np.bool_]) -> None:
        """Forget the running episodes of these rows [T*E]: they were cut short and count nowhere."""
        self._return[rows] = 0.0
        self._success[rows] = False

    def pop_means(self) -> tuple[dict[str, float], dict[str, NDArray[np.float64]]]:
        """Mean return and any-step success rate of the episodes ended since the last call, if any.

        Returns:
            Those over all episodes, and each task's success rate [T], NaN where it ended no episode.
        """
        episodes, returns, successes = self._ended
        self._ended = np.zeros_like(self._ended)
        if not episodes.any():
            return {}, {}
        means = {"rollout/ep_rew_mean": returns.sum() / episodes.sum()}
        if not self._known:
            return means, {}
        means["rollout/success_rate"] = successes.sum() / episodes.sum()
        each = np.full_like(successes, np.nan)
        return means, {"training_success": np.divide(successes, episodes, out=each, where=episodes > 0)}

    def state_dict(self) -> dict[str, Any]:
        """Unfinished episodes and what has not been reported yet."""
        return {"return": self._return, "success": self._success, "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._return = np.array(state["return"])
        self._success = np.array(state["success"])
        self._ended = np.array(state["ended"])
