"""Builds suite, environments and agent from a resolved configuration."""

import dataclasses

import torch

from mtrl.agents import AGENTS
from mtrl.agents.base import Agent, TaskSpec
from mtrl.config.schema import Config
from mtrl.device.resources import available_cores
from mtrl.envs import TaskVectorEnv, build_suite
from mtrl.envs.engine.supervision import Notify
from mtrl.envs.suite import TaskSuite
from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.plain_tree import to_plain


def suite_of(config: Config) -> TaskSuite:
    """Return the run's suite of tasks. Raises UserError if there is no such suite, option or task."""
    return build_suite(
        config.suite, config.tasks, num_goals=config.env.num_goals, options=config.suite_options
    )


def training_workers(config: Config, device: torch.device) -> int | None:
    """Return the number of environment processes for training; None: one per available core."""
    if config.env.num_workers is None and device.type == "cuda":
        # The learner's thread and the one that writes checkpoints are busy while environments step.
        return max(available_cores() - 2, 1)
    return config.env.num_workers


def build_envs(
    config: Config,
    *,
    num_workers: int | None,
    evaluation: bool = False,
    notify: Notify = console.warning,
    suite: TaskSuite | None = None,
) -> TaskVectorEnv:
    """Start the run's environments in num_workers processes; None: one per available core.

    An evaluation may have longer episodes (`eval.max_episode_steps`) and another number of copies
    (`eval.envs_per_task`). Restarts are reported to `notify`.
    """
    env = config.env
    own_steps = config.eval.max_episode_steps if evaluation else None
    own_copies = config.eval.envs_per_task if evaluation else None
    return TaskVectorEnv(
        suite or suite_of(config),
        seed=config.seed,
        envs_per_task=own_copies or env.envs_per_task,
        num_workers=num_workers,
        max_episode_steps=own_steps or env.max_episode_steps,
        step_timeout=env.step_timeout,
        max_restarts=env.max_restarts,
        worker_niceness=env.worker_niceness,
        notify=notify,
    )


def restart_sentence(problem: str) -> str:
    """Say what follows from environments that cannot be saved."""
    return (
        f"{problem} Checkpoints of this run hold no environments (env.resume=restart): a resumed run begins "
        "new episodes and does not repeat the undisturbed run bit for bit."
    )


def settle_resume(config: Config, envs: TaskVectorEnv) -> Config:
    """Return `config`, with env.resume=restart and a warning if `auto` finds that states cannot be saved.

    Raises:
        UserError: they cannot be saved, and env.resume=exact.
    """
    if config.env.resume == "restart":
        return config
    problem = envs.state_problem(lambda states: to_plain(states, "environment"))
    if problem is None:
        return config
    if config.env.resume == "exact":
        raise UserError(
            f"{problem} env.resume=exact needs environments that can be saved. With env.resume=restart "
            "checkpoints hold no environments, and a resumed run begins new episodes."
        )
    console.warning(restart_sentence(problem))
    return with_restart(config)


def with_restart(config: Config) -> Config:
    """Return `config` with env.resume=restart."""
    return dataclasses.replace(config, env=dataclasses.replace(config.env, resume="restart"))


def build_agent(config: Config, tasks: TaskSuite | TaskVectorEnv, device: torch.device) -> Agent:
    """Make a fresh agent for the run's tasks."""
    spec = TaskSpec(tuple(tasks.task_names), config.env.envs_per_task, tasks.obs_dim, tasks.action_dim)
    agent: Agent = AGENTS[config.agent](config, spec, device)
    return agent
