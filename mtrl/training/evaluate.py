"""Evaluation: the deterministic policy on fixed goals, in environments of its own, exact episode counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrl.agents.base import Policy
from mtrl.runs.log import Evaluation


class EvaluationEnvs(Protocol):
    """What evaluation asks of a vector environment (`mtrl.envs.make_envs` returns one)."""

    task_names: tuple[str, ...]
    num_tasks: int
    envs_per_task: int
    num_goals: int

    def reset(self, *, options: dict[str, Any]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the given goals: options["goal"] is an int array [T*E]."""
        ...

    def step(self, actions: NDArray[np.float32]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments."""
        ...


def evaluate(
    policy: Policy,
    envs: EvaluationEnvs,
    episodes_per_task: int,
    *,
    between_steps: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run episodes_per_task whole episodes of each task; episode k starts goal k modulo the number of goals.

    Episodes are dealt out in rounds, copy e of a task taking episode `round * E + e`, and all of a round
    run to their end, so that no task and no short episode counts more often than another. Success at any step
    means the flag was set at least once; success at the last step means it was set when the episode ended.
    Both are NaN for a task that knows no success.
    A round in which a worker had to be restarted is run again: its episodes are fixed by their goals.

    Args:
        policy: maps observations [T*E, O] to actions [T*E, A].
        envs: environments used for nothing else.
        episodes_per_task: exact number of episodes counted per task.
        between_steps: called before each env step; lets signals be handled during an evaluation, may raise to
            abort it.
    """
    tasks, copies = envs.num_tasks, envs.envs_per_task
    rounds = -(-episodes_per_task // copies)
    any_step = np.zeros((tasks, rounds * copies), dtype=np.float64)
    last_step = np.zeros_like(any_step)
    returns = np.zeros_like(any_step)
    for number in range(rounds):
        columns = slice(number * copies, (number + 1) * copies)
        episode = np.tile(np.arange(copies) + number * copies, tasks)
        outcome = None
        while outcome is None:
            outcome = _try_round(policy, envs, episode % envs.num_goals, between_steps)
        for table, values in zip((any_step, last_step, returns), outcome, strict=True):
            table[:, columns] = values.reshape(tasks, copies)
    keep = slice(episodes_per_task)
    return Evaluation(envs.task_names, any_step[:, keep], last_step[:, keep], returns[:, keep])


def _try_round(
    policy: Policy, envs: EvaluationEnvs, goals: NDArray[np.int64], between_steps: Callable[[], None]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """One episode in every environment: success at any step and at the last, return, each [T*E].

    None if a worker was restarted meanwhile: its episodes are cut short, so the round counts for nothing.
    """
    obs, _ = envs.reset(options={"goal": goals})
    running = np.ones(len(goals), dtype=bool)
    any_step, last_step = np.full(len(goals), np.nan), np.full(len(goals), np.nan)
    returns = np.zeros(len(goals))
    while running.any():
        between_steps()
        obs, reward, terminated, truncated, infos = envs.step(policy(obs))
        if (infos["restarted"] & running).any():
            return None
        flag = infos["success"]
        success = np.where(np.isnan(flag), np.nan, flag > 0)
        returns += np.where(running, reward, 0.0)
        any_step = np.where(running, np.fmax(any_step, success), any_step)  # a number wins over NaN
        ended = (terminated | truncated) & running
        last_step[ended] = success[ended]
        running &= ~ended
    return any_step, last_step, returns
