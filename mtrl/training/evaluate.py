"""Evaluation: the deterministic policy on fixed goals, an exact number of episodes of each task."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mtrl.agents.base import Policy
from mtrl.envs import TaskVectorEnv
from mtrl.runs.log import Evaluation


def evaluate(
    policy: Policy,
    envs: TaskVectorEnv,
    episodes_per_task: int,
    *,
    between_steps: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Run episodes_per_task whole episodes of each task; episode k starts goal k modulo the number of goals.

    In each round copy e of a task runs episode `round * E + e` to its end, so that short episodes do not
    count more often than long ones. Success at any step means the flag was set at least once; success at the
    last step means it was set when the episode ended. Both are NaN for a task without success flags.
    A round in which a worker was restarted is run again from the same goals.

    Args:
        policy: maps observations [T*E, O] to actions [T*E, A].
        envs: environments used for nothing else.
        episodes_per_task: episodes counted for each task.
        between_steps: called before each vector step, to handle signals; may raise to abort the evaluation.
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
    # Some environments give the flag only where an episode is solved.
    known = ~np.isnan(any_step).all(axis=1, keepdims=True)
    any_step, last_step = (np.where(known, np.nan_to_num(table), table) for table in (any_step, last_step))
    keep = slice(episodes_per_task)
    return Evaluation(envs.task_names, any_step[:, keep], last_step[:, keep], returns[:, keep])


def _try_round(
    policy: Policy, envs: TaskVectorEnv, goals: NDArray[np.int64], between_steps: Callable[[], None]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None:
    """Run one episode in each environment: success at any step and at the last, return, each [T*E].

    Returns None if a worker was restarted meanwhile, because its episodes were cut short.
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
