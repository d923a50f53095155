"""The entry point: names and numbers in, running environments out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mtrl.envs.engine.supervision import Report, warn
from mtrl.envs.engine.vector import MetaWorldVectorEnv
from mtrl.envs.metaworld.goals import GOALS_PER_TASK
from mtrl.envs.metaworld.tasks import resolve_tasks


def make_envs(
    tasks: str | Sequence[str],
    *,
    seed: int,
    envs_per_task: int = 1,
    num_workers: int | None = None,
    reward_version: Literal["v1", "v2"] = "v2",
    num_goals: int = GOALS_PER_TASK,
    max_episode_steps: int = 500,
    terminate_on_success: bool = False,
    render_mode: str | None = None,
    step_timeout: float = 60.0,
    max_restarts: int = 3,
    report: Report = warn,
) -> MetaWorldVectorEnv:
    """Start worker processes with T x E environments and return them as one vector environment.

    Args:
        tasks: "MT10", "MT25", "MT50", or a sequence of task names such as ["reach-v3", "push-v3"].
        seed: Of the goal sets and of each environment's goal stream.
        envs_per_task: Copies of each task, E.
        num_workers: Processes; None: one per available core. Never more than environments.
        reward_version: Upstream's reward functions, "v1" or "v2".
        num_goals: Goals used per task: the first ones of upstream's 50, so that fewer goals are a subset.
        max_episode_steps: Env steps after which an episode is truncated.
        terminate_on_success: Whether success ends an episode as a termination (never in training).
        render_mode: Upstream's: None, "human", "rgb_array" or "depth_array".
        step_timeout: Seconds without an answer after which a worker counts as hung.
        max_restarts: Workers that die, raise or hang are restarted this often in all; then stepping raises.
        report: Called with a text for each restart, and if upstream's version makes environments slow; by
            default a RuntimeWarning.

    Raises:
        UserError: an unknown or doubled task, or a number out of range.
        EnvironmentFailure: a worker could not start.
    """
    return MetaWorldVectorEnv(
        resolve_tasks(tasks),
        seed=seed,
        envs_per_task=envs_per_task,
        num_workers=num_workers,
        reward_version=reward_version,
        num_goals=num_goals,
        max_episode_steps=max_episode_steps,
        terminate_on_success=terminate_on_success,
        render_mode=render_mode,
        step_timeout=step_timeout,
        max_restarts=max_restarts,
        report=report,
    )
