"""Meta-World as a suite of tasks. Workers alone import metaworld and mujoco (`simulation`, `speedups`)."""

import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.tasks import (
    ACTION_SIZE,
    BENCHMARKS,
    GOALS_PER_TASK,
    OBS_SIZE,
    STEP_COSTS,
    goal_source,
    resolve_tasks,
)
from mtrl.envs.suite import TaskEnv, TaskSuite, renderer_variables
from mtrl.errors import UserError

GoalSets = dict[str, NDArray[np.float64]]
Generate = Callable[[Sequence[str], int], Mapping[str, NDArray[np.float64]]]

INFO_KEYS = (
    "success", "near_object", "grasp_success", "grasp_reward", "in_place_reward", "obj_to_target",
    "unscaled_reward",
)  # fmt: skip
"""Entries of upstream's info, the same in all tasks."""
CAMERAS = ("side", "corner", "corner2", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
"""`side` is this library's and shows arm, object and goal of every task; the others are upstream's."""


class MetaWorldSuite(TaskSuite):
    """Tasks of Meta-World v3, goal visible.

    Goal set of seed s: upstream's `metaworld.MT10(seed=s).train_tasks` and the like.

    Args:
        tasks: "MT10", "MT25", "MT50", or task names such as ["reach-v3", "push-v3"].
        num_goals: goals used per task: the first ones of upstream's 50; None: all.
        reward_version: upstream's reward functions, "v1" or "v2". Upstream computes success from distances
            that they return, so v1 changes the flag too: hand-insert-v3 is never solved, and lever-pull-v3
            compares metres with an angle.

    Raises:
        UserError: an unknown task, a task given twice, or a value out of range.
    """

    obs_dim = OBS_SIZE
    action_dim = ACTION_SIZE
    info_keys = INFO_KEYS
    step_costs = STEP_COSTS
    cameras = CAMERAS
    exact = True
    worker_variables = staticmethod(renderer_variables)

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

    def draw_goals(self, seed: int) -> GoalSets:
        """Return the goal vectors [num_goals, D] of each task, from the cache on disk if it has them."""
        from mtrl.envs.metaworld.simulation import generate_goals

        sets = goal_sets(self.task_names, seed, self.versions()["metaworld"], generate_goals)
        return {name: goals[: self.num_goals] for name, goals in sets.items()}

    def make_env(
        self, task: str, goals: NDArray[np.float64], *, render_mode: str | None, **_: Any
    ) -> TaskEnv:
        """Return one task's simulation with its goals [G, D], beyond which nothing is random."""
        from mtrl.envs.metaworld import simulation

        return simulation.make_env(
            task, goals, reward_version=self.reward_version, render_mode=render_mode, camera=self.camera
        )


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/mtrl/goals`, by default `~/.cache/mtrl/goals`.

    Without a home folder (no HOME and no entry of the user, as in some containers) it is this user's folder
    among the temporary files, with a warning.
    """
    # The XDG specification says that relative values are to be ignored.
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "mtrl" / "goals"
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        return Path(home) / ".cache" / "mtrl" / "goals"
    folder = Path(tempfile.gettempdir()) / f"mtrl-{os.getuid()}" / "goals"
    warnings.warn(
        f"no home folder: goals are cached in {folder}. Set HOME or XDG_CACHE_HOME to keep them.",
        RuntimeWarning,
        stacklevel=2,
    )
    return folder


def goal_sets(tasks: Sequence[str], seed: int, version: str, generate: Generate) -> GoalSets:
    """Return the goal vectors [50, D] of each task, from the cache if it has them.

    `generate(names, seed)` draws the goals of the first tasks of a benchmark, as upstream does. It is called
    only for benchmarks of which goals are missing. A cache that cannot be read or written causes a warning.
    """
    source, cache = goal_source(tasks), cache_folder() / version
    found: GoalSets = {}
    for benchmark in sorted(set(source.values())):
        wanted = [name for name in tasks if source[name] == benchmark]
        folder = cache / benchmark / f"seed{seed}"
        cached = {name: goals for name in wanted if (goals := _read(folder / f"{name}.npz")) is not None}
        if len(cached) < len(wanted):
            order = BENCHMARKS[benchmark]
            last = max(order.index(name) for name in wanted)
            fresh = generate(order[: last + 1], seed)
            _write_all(folder, fresh)
            cached = {name: fresh[name] for name in wanted}
        found.update(cached)
    return {name: found[name] for name in tasks}


# A file of another kind is a TypeError; zipfile calls some flipped bits an encryption or a compression that
# it does not know, a RuntimeError.
_UNREADABLE = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


def _read(path: Path) -> NDArray[np.float64] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            goals: NDArray[np.float64] = archive["rand_vec"]
        if goals.dtype != np.float64 or goals.ndim != 2 or len(goals) != GOALS_PER_TASK:
            raise ValueError(f"{goals.dtype} array of shape {goals.shape}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except _UNREADABLE as error:
        warnings.warn(
            f"goal cache {path} is unusable ({error}) and is written again.", RuntimeWarning, stacklevel=2
        )
        return None
    return goals


def _write_all(folder: Path, goals: Mapping[str, NDArray[np.float64]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, vectors in goals.items():
            _write(folder / f"{name}.npz", vectors)
    except OSError as error:
        warnings.warn(
            f"goal cache {folder} cannot be written ({error}): goals are drawn again at the next start. "
            "Set XDG_CACHE_HOME to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )


def _write(path: Path, vectors: NDArray[np.float64]) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=".npz", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, rand_vec=vectors)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
