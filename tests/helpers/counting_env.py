"""A backend of the environment workers with integers for numbers: the vector API's rules become visible.

Observation entries: 0 env steps of the running episode, 1 goal, 2 episodes started, 3 task code, 4 sum of the
first action entries of the episode. The reward is 100 * task code + env steps. Special actions misbehave.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.engine.shared import INFO_KEYS
from mtrl.envs.engine.worker import Rules

RAISE, HANG, KILL, NAN_OBS, NAN_REWARD, SUCCEED, SLOW = 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0


def versions() -> dict[str, str]:
    return {"metaworld": "counting", "mujoco": "none"}


def generate_goals(names: tuple[str, ...], seed: int) -> dict[str, NDArray[np.float64]]:
    return goals(names)


def notes() -> list[str]:
    return []


def goals(names: tuple[str, ...]) -> dict[str, NDArray[np.float64]]:
    """Fifty goals of each task: goal g is the vector [g]."""
    return {name: np.arange(50, dtype=np.float64)[:, None] for name in names}


def make_env(task: str, goal_set: NDArray[np.float64], rules: Rules, render_mode: str | None) -> CountingEnv:
    if os.environ.get("COUNTING_ENV_BROKEN"):
        raise RuntimeError("the counting environment was asked not to be made")
    return CountingEnv(task, goal_set)


class CountingEnv:
    """Counts; the task's code is the number in its name ("task-7": 7)."""

    def __init__(self, task: str, goal_set: NDArray[np.float64]) -> None:
        self.code = int(task.rpartition("-")[2])
        self.goals = goal_set
        self.steps = self.goal = self.episodes = 0
        self.total = 0.0

    def set_goals(self, goals: NDArray[np.float64]) -> None:
        self.goals = goals

    def reset(self, goal: int) -> NDArray[np.float64]:
        if os.environ.get("COUNTING_ENV_DIES_IN_RESET"):
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps, self.goal, self.total = 0, int(self.goals[goal, 0]), 0.0
        self.episodes += 1
        return self._obs()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, dict[str, Any]]:
        special = float(action[3])
        if special == RAISE:
            raise ZeroDivisionError("the counting environment was asked to raise")
        if special == HANG:
            time.sleep(600)
        if special == SLOW:
            time.sleep(0.5)
        if special == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1
        self.total += float(action[0])
        obs = self._obs()
        if special == NAN_OBS:
            obs[7] = np.nan
        reward = np.inf if special == NAN_REWARD else 100.0 * self.code + self.steps
        info = dict.fromkeys(INFO_KEYS, 0.0) | {"success": float(special == SUCCEED)}
        return obs, reward, info

    def _obs(self) -> NDArray[np.float64]:
        obs = np.zeros(39)
        obs[:5] = self.steps, self.goal, self.episodes, self.code, self.total
        return obs

    def get_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "goal": self.goal, "episodes": self.episodes, "total": self.total}

    def set_state(self, state: dict[str, Any]) -> None:
        self.steps, self.goal = state["steps"], state["goal"]
        self.episodes, self.total = state["episodes"], state["total"]

    def render(self) -> NDArray[np.uint8]:
        return np.full((2, 3, 3), self.code, np.uint8)

    def close(self) -> None:
        pass
