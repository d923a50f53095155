"""Suites of tasks as vectors of environments in worker processes. Imports no torch and no simulation."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mtrl.envs.metaworld.tasks import ACTION_SIZE, BENCHMARKS, GOALS_PER_TASK, OBS_SIZE, resolve_tasks

if TYPE_CHECKING:
    from mtrl.envs.engine.vector import TaskVectorEnv
    from mtrl.envs.suite import build_suite

__all__ = ["ACTION_SIZE", "BENCHMARKS", "OBS_SIZE", "TaskVectorEnv"]
__all__ += ["build_suite", "make_envs", "resolve_tasks"]

# Imported on first use, because Gymnasium takes a tenth of a second, which `--help` would have to wait for.
_HOMES = {"TaskVectorEnv": "mtrl.envs.engine.vector", "build_suite": "mtrl.envs.suite"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_envs(
    tasks: str | Sequence[str],
    *,
    seed: int,
    num_goals: int = GOALS_PER_TASK,
    reward_version: Literal["v1", "v2"] = "v2",
    **engine: Any,
) -> TaskVectorEnv:
    """Start worker processes with T x E environments of Meta-World.

    Args:
        tasks: as in MetaWorldSuite.
        seed: of the goal sets and of each environment's goal stream.
        num_goals: goals used per task, the first ones of upstream's 50.
        reward_version: upstream's reward functions, "v1" or "v2".
        engine: further arguments of TaskVectorEnv, such as envs_per_task and max_episode_steps.

    Raises as MetaWorldSuite and TaskVectorEnv.
    """
    from mtrl.envs.engine.vector import TaskVectorEnv
    from mtrl.envs.metaworld.suite import MetaWorldSuite

    suite = MetaWorldSuite(tasks, num_goals=num_goals, reward_version=reward_version)
    return TaskVectorEnv(suite, seed=seed, **engine)
