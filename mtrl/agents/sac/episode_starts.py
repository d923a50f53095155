"""Realised returns of episodes, with their first observations and actions: a check of the critics' values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtrl.agents.base import Floats, TaskSpec, Transitions


class Starts(NamedTuple):
    """First observation, first action and return of the newest whole episode of each environment."""

    obs: Floats  # [T*E, O]
    action: Floats  # [T*E, A]
    realised: NDArray[np.float64]  # [T*E], discounted sum of the episode's raw rewards; NaN: no episode ended


class EpisodeStarts:
    """Follows the episodes of T*E environments, rows in task-major order; NumPy on the host alone.

    Values far above the realised returns show that the critic does not fit a task: the task's rewards may be
    scaled below the critic's own error.
    """

    def __init__(self, spec: TaskSpec, gamma: float) -> None:
        rows = spec.num_tasks * spec.envs_per_task
        self._gamma = gamma
        self._state = {
            "begins": np.ones(rows, bool),  # whether the next transition is the first of an episode
            "obs": np.zeros((rows, spec.obs_dim), np.float32),
            "action": np.zeros((rows, spec.action_dim), np.float32),
            "discount": np.ones(rows),
            "return": np.zeros(rows),
        }
        self.newest = Starts(self._state["obs"].copy(), self._state["action"].copy(), np.full(rows, np.nan))

    def add(self, seen: Transitions) -> None:
        """Add one vector step."""
        state = self._state
        begins = state["begins"]
        if begins.any():
            state["obs"][begins], state["action"][begins] = seen.obs[begins], seen.action[begins]
            state["discount"][begins], state["return"][begins] = 1.0, 0.0
        state["return"] += state["discount"] * seen.reward
        state["discount"] *= self._gamma
        ended = (seen.terminated | seen.truncated) & ~seen.lost
        if ended.any():
            newest = self.newest
            newest.obs[ended], newest.action[ended] = state["obs"][ended], state["action"][ended]
            newest.realised[ended] = state["return"][ended]
        state["begins"] = ended | seen.lost

    def state_dict(self) -> dict[str, Any]:
        """Return the episodes under way and the newest whole ones."""
        return {**self._state, "newest": self.newest._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._state = {name: np.array(state[name]) for name in self._state}
        self.newest = Starts(**{name: np.array(value) for name, value in state["newest"].items()})
