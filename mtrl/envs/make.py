"""Entry points: a Config, or names and numbers, in; a suite, or running environments, out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mtrl.envs.engine.supervision import Report, warn
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.suite import MetaWorldSuite
from mtrl.envs.metaworld.tasks import GOALS_PER_TASK
from mtrl.envs.suite import SUITES, TaskSuite
from mtrl.errors import UserError, unknown_name


def build_suite(
    name: str,
    tasks: Sequence[str],
    *,
    num_goals: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> TaskSuite:
    """Return the suite of that name, or of "package.module:Name", with the given tasks.

    Args:
        name: a name in SUITES or a path to a class of the user's own.
        tasks: as the suite understands them.
        num_goals: variations of each task; None: as many as the suite has.
        options: the suite class's keyword-only arguments.

    Raises:
        UserError: no such suite, option or task.
    """
    cls = SUITES[name]
    options = dict(options or {})
    parameters = inspect.signature(cls).parameters.values()
    known = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    for option in options:
        if option not in known - {"num_goals"}:
            raise UserError(unknown_name(f"option of the suite {name}", option, known - {"num_goals"}))
    suite: TaskSuite = cls(tasks, num_goals=num_goals, **options)
    return suite


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
) -> TaskVectorEnv:
    """Start worker processes with T x E environments of Meta-World; TaskVectorEnv does it for any suite.

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
        report: Called with a text for each restart, and if upstream's version makes environments slow.

    Raises:
        UserError: an unknown or doubled task, or a number out of range.
        EnvironmentFailure: a worker could not start.
    """
    return TaskVectorEnv(
        MetaWorldSuite(tasks, num_goals=num_goals, reward_version=reward_version),
        seed=seed,
        envs_per_task=envs_per_task,
        num_workers=num_workers,
        max_episode_steps=max_episode_steps,
        terminate_on_success=terminate_on_success,
        render_mode=render_mode,
        step_timeout=step_timeout,
        max_restarts=max_restarts,
        report=report,
    )
