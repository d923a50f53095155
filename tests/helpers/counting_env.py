"""A suite of integers for numbers: the vector API's rules become visible, and workers start at once.

Observation entries: 0 env steps of the running episode, 1 goal, 2 episodes started, 3 task code, 4 sum of the
first action entries of the episode. The reward is 100 * task code + env steps. Special actions misbehave.
Sizes are not Meta-World's, so that none of those can hide in the engine.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.suite import StepOutcome, TaskSuite
from mtrl.errors import UserError

RAISE, HANG, KILL, NAN_OBS, NAN_REWARD, SUCCEED, SLOW, END = 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0
REFUSE, DISCONNECT, ONE_NUMBER, SPAWN = 19.0, 20.0, 21.0, 22.0
OBS_DIM, ACTION_DIM = 8, 4
INFO_KEYS = ("success", "steps")


class CountingSuite(TaskSuite):
    """Tasks are names that end in their code: "task-7". Goal g of every task is the number g."""

    obs_dim, action_dim = OBS_DIM, ACTION_DIM
    info_keys = INFO_KEYS

    def __init__(
        self, tasks: str | Sequence[str], *, num_goals: int | None = None, step_seconds: float = 0.0
    ) -> None:
        names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        bad = [name for name in names if not name.rpartition("-")[2].isdecimal()]
        if bad:
            raise UserError(f"tasks of the counting suite are named task-NUMBER; found {', '.join(bad)}.")
        self.task_names = names
        self.num_goals = 50 if num_goals is None else num_goals
        self.step_seconds = step_seconds

    def versions(self) -> dict[str, str]:
        return {"counting": "1"}

    def draw_goals(self, seed: int) -> dict[str, NDArray[np.float64]]:
        if os.environ.get("COUNTING_ENV_REMARK"):
            warnings.warn("the counting suite was asked for a remark", RuntimeWarning, stacklevel=2)
        return {name: np.arange(float(self.num_goals)) for name in self.task_names}

    def make_env(
        self,
        task: str,
        goals: NDArray[np.float64],
        *,
        seed: np.random.SeedSequence,
        max_episode_steps: int,
        render_mode: str | None,
    ) -> CountingEnv:
        if kind := os.environ.get("COUNTING_ENV_BROKEN"):
            if kind == "slow":
                time.sleep(600)
            text = "the counting environment was asked not to be made"
            errors: dict[str, Exception] = {
                "KeyError": KeyError(text),
                "JSONDecodeError": json.JSONDecodeError(text, "", 0),
                "UnsupportedOperation": io.UnsupportedOperation(text),
                "opening file": ValueError(f"Error opening file: {text}"),
            }
            raise errors.get(kind, RuntimeError(text))
        return CountingEnv(task, goals, self.step_seconds)


class CountingEnv:
    """Counts; the task's code is the number in its name ("task-7": 7)."""

    def __init__(self, task: str, goals: NDArray[np.float64], step_seconds: float) -> None:
        self.code = int(task.rpartition("-")[2])
        self.goals = goals
        self.step_seconds = step_seconds
        self.steps = self.goal = self.episodes = 0
        self.total = 0.0

    def reset(self, goal: int) -> NDArray[np.float64]:
        if os.environ.get("COUNTING_ENV_DIES_IN_RESET"):
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps, self.goal, self.total = 0, int(self.goals[goal]), 0.0
        self.episodes += 1
        return self._obs()

    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        special = float(action[3])
        if special == RAISE:
            raise ZeroDivisionError("the counting environment was asked to raise")
        if special == REFUSE:
            raise UserError("the counting environment was asked to refuse")
        if special == DISCONNECT:
            raise ConnectionResetError("the counting environment was asked to lose its simulator")
        if special == HANG:
            time.sleep(600)
        if special == SLOW:
            time.sleep(0.5)
        if special == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.step_seconds:
            time.sleep(self.step_seconds)
        self.steps += 1
        self.total += float(action[0])
        obs = self._obs()
        if special == SPAWN:
            obs[5] = subprocess.Popen(["sleep", "600"]).pid
        if special == NAN_OBS:
            obs[7] = np.nan
        if special == ONE_NUMBER:
            obs = obs[:1]
        reward = np.inf if special == NAN_REWARD else 100.0 * self.code + self.steps
        info = {"success": float(special == SUCCEED), "steps": float(self.steps)}
        return obs, reward, special == END, False, info

    def _obs(self) -> NDArray[np.float64]:
        obs = np.zeros(OBS_DIM)
        obs[:5] = self.steps, self.goal, self.episodes, self.code, self.total
        return obs

    def get_state(self) -> dict[str, Any]:
        late = int(os.environ.get("COUNTING_ENV_UNSAVABLE_AFTER", 10**9))
        if os.environ.get("COUNTING_ENV_UNSAVABLE") or self.steps + 20 * self.episodes > 20 + late:
            raise UserError("the counting environment was asked not to be saved")
        return {"steps": self.steps, "goal": self.goal, "episodes": self.episodes, "total": self.total}

    def set_state(self, state: dict[str, Any]) -> None:
        self.steps, self.goal = state["steps"], state["goal"]
        self.episodes, self.total = state["episodes"], state["total"]

    def render(self) -> NDArray[np.uint8]:
        if os.environ.get("COUNTING_ENV_BLIND"):
            raise RuntimeError("the counting environment was asked to render nothing")
        return np.full((2, 3, 3), self.code, np.uint8)

    def close(self) -> None:
        pass


class AimingSuite(CountingSuite):
    """Pays for the goal and for the action too, of which a CountingSuite's rewards know nothing."""

    def make_env(self, task: str, goals: Any, **options: Any) -> CountingEnv:
        return _AimingEnv(task, goals, 0.0)


class _AimingEnv(CountingEnv):
    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward + self.goal + float(action[0]), terminated, truncated, info
