"""Returns and successes of training episodes, as they end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RolloutStatistics:
    """Accumulates per-environment episodes; `num_envs` is T*E."""

    def __init__(self, num_envs: int) -> None:
        self._return = np.zeros(num_envs, dtype=np.float64)
        self._success = np.zeros(num_envs, dtype=bool)
        self._known = True  # whether any task knows success
        self._ended: NDArray[np.float64] = np.zeros(
            3, dtype=np.float64
        )  # episodes, sum of returns, successes

    def add(
        self, reward: NDArray[np.float32], success: NDArray[np.float32], ended: NDArray[np.bool_]
    ) -> None:
        """Count one vector step: reward, success flag and end of episode, each [T*E]."""
        self._return += reward
        self._success |= success > 0
        self._known = not np.isnan(success).all()
        if ended.any():
            self._ended += (ended.sum(), self._return[ended].sum(), self._success[ended].sum())
            self._return[ended] = 0.0
            self._success[ended] = False

    def drop(self, rows: NDArray[np.bool_]) -> None:
        """Forget the running episodes of these rows [T*E]: they were cut short and count nowhere."""
        self._return[rows] = 0.0
        self._success[rows] = False

    def pop_means(self) -> dict[str, float]:
        """Mean return and any-step success rate of the episodes ended since the last call, if any."""
        episodes, returns, successes = self._ended
        self._ended = np.zeros_like(self._ended)
        if not episodes:
            return {}
        means = {"rollout/ep_rew_mean": returns / episodes}
        return means | ({"rollout/success_rate": successes / episodes} if self._known else {})

    def state_dict(self) -> dict[str, Any]:
        """Unfinished episodes and what has not been reported yet."""
        return {"return": self._return, "success": self._success, "ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._return = np.array(state["return"])
        self._success = np.array(state["success"])
        self._ended = np.array(state["ended"])
