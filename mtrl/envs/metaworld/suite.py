"""Meta-World as a suite of tasks. Imports neither metaworld nor mujoco: workers do, in `simulation`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.costs import STEP_COSTS
from mtrl.envs.metaworld.goals import GOALS_PER_TASK, GoalSets, goal_sets
from mtrl.envs.metaworld.tasks import ACTION_SIZE, OBS_SIZE, resolve_tasks
from mtrl.envs.mujoco_gl import variables
from mtrl.envs.suite import TaskEnv, TaskSuite
from mtrl.errors import UserError

INFO_KEYS = (
    "success",
    "near_object",
    "grasp_success",
    "grasp_reward",
    "in_place_reward",
    "obj_to_target",
    "unscaled_reward",
)
"""Entries of upstream's info, the same in all tasks."""
CAMERAS = ("side", "corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
"""`side`: our own, which arm, object and goal of every task are in; the others are upstream's."""
_SIMULATION = "mtrl.envs.metaworld.simulation"


class MetaWorldSuite(TaskSuite):
    """Tasks of Meta-World v3, goal visible.

    Goal set of seed s: upstream's `metaworld.MT10(seed=s).train_tasks` and the like.

    Args:
        tasks: "MT10", "MT25", "MT50", or task names such as ["reach-v3", "push-v3"].
        num_goals: goals used per task: the first ones of upstream's 50; None: all.
        reward_version: upstream's reward functions, "v1" or "v2".

    Raises:
        UserError: an unknown or doubled task, or a value out of range.
    """

    obs_dim = OBS_SIZE
    action_dim = ACTION_SIZE
    info_keys = INFO_KEYS
    step_costs = STEP_COSTS
    cameras = CAMERAS

    def __init__(
        self,
        tasks: str | Sequence[str],
        *,
        num_goals: int | None = None,
        reward_version: Literal["v1", "v2"] = "v2",
    ) -> None:
        if reward_version not in ("v1", "v2"):
            raise UserError(f"reward_version must be 'v1' or 'v2'; found {reward_version!r}.")
        self.num_goals = GOALS_PER_TASK if num_goals is None else num_goals
        if self.num_goals > GOALS_PER_TASK:
            raise UserError(f"num_goals must be at most {GOALS_PER_TASK}, as upstream; found {num_goals}.")
        self.task_names = resolve_tasks(tasks)
        self.reward_version = reward_version

    def versions(self) -> dict[str, str]:
        """Return the installed versions of metaworld and mujoco."""
        return {package: version(package) for package in ("metaworld", "mujoco")}

    def rules(self) -> dict[str, Any]:
        """Return the reward version."""
        return {"reward_version": self.reward_version}

    def worker_variables(self, render_mode: str | None) -> dict[str, str]:
        """Return what lets workers import MuJoCo without the renderer they do not need."""
        return variables(render_mode)

    def draw_goals(self, seed: int) -> GoalSets:
        """Return the goal vectors [num_goals, D] of each task, from the cache on disk where it has them."""

        def generate(names: Sequence[str], seed: int) -> Mapping[str, NDArray[np.float64]]:
            goals: GoalSets = importlib.import_module(_SIMULATION).generate_goals(names, seed)
            return goals

        sets = goal_sets(self.task_names, seed, self.versions()["metaworld"], generate)
        return {name: goals[: self.num_goals] for name, goals in sets.items()}

    def make_env(
        self,
        task: str,
        goals: NDArray[np.float64],
        *,
        seed: np.random.SeedSequence,
        max_episode_steps: int,
        render_mode: str | None,
    ) -> TaskEnv:
        """Return one task's simulation, which draws nothing beyond its goals [G, D]."""
        env: TaskEnv = importlib.import_module(_SIMULATION).make_env(
            task, goals, reward_version=self.reward_version, render_mode=render_mode, camera=self.camera
        )
        return env
