"""Evaluation against an environment whose every number is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtrl.errors import UserError
from mtrl.training.evaluate import evaluate
from mtrl.training.run import evaluate_run

HORIZON = 6


class ScriptedEnvs:
    """Reward at each step is the goal; success is up only at step `goal + 1`; task 1 never succeeds."""

    def __init__(self, copies: int, goals: int = 4) -> None:
        self.task_names: tuple[str, ...] = ("a", "b")
        self.num_tasks = 2
        self.envs_per_task = copies
        self.num_goals = goals
        self.started: list[list[int]] = []
        self.stepped = 0
        self.restart_at: set[int] = set()

    def reset(self, *, options: dict[str, Any]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self.goal = np.asarray(options["goal"])
        self.started.append(self.goal.tolist())
        self.time = 0
        return np.zeros((len(self.goal), 39), np.float32), {}

    def step(self, actions: NDArray[np.float32]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert actions.shape == (len(self.goal), 4)
        self.time += 1
        self.stepped += 1
        task_a = np.arange(len(self.goal)) < self.envs_per_task
        success = ((self.time == self.goal + 1) & task_a).astype(np.float32)
        ended = np.full(len(self.goal), self.time == HORIZON)
        obs = np.zeros((len(self.goal), 39), np.float32)
        restarted = np.zeros_like(ended)
        if self.stepped in self.restart_at:
            restarted[0] = ended[0] = True
        infos = {"success": success, "restarted": restarted}
        return obs, self.goal.astype(np.float32), np.zeros_like(ended), ended, infos


def _policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.zeros((len(obs), 4), np.float32)


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
@pytest.mark.parametrize("episodes", [1, 3, 4, 6])
def test_exact_episode_counts_and_goals_whatever_the_number_of_copies(copies: int, episodes: int) -> None:
    envs: Any = ScriptedEnvs(copies)
    result = evaluate(_policy, envs, episodes)
    assert result.success.shape == (2, episodes)
    # Episode k plays goal k modulo 4, so its return is 6 times that.
    expected = HORIZON * (np.arange(episodes) % 4)
    np.testing.assert_array_equal(result.episode_return, np.stack([expected, expected]))
    assert result.success.tolist() == [[True] * episodes, [False] * episodes]
    assert not result.success_last.any()


def test_success_at_the_last_step_is_told_apart() -> None:
    envs: Any = ScriptedEnvs(copies=1, goals=HORIZON)
    result = evaluate(_policy, envs, HORIZON)
    assert result.success_last[0].tolist() == [False] * (HORIZON - 1) + [True]
    assert result.mean_success == 0.5


def test_each_goal_is_started_exactly_once_when_as_many_episodes_are_asked() -> None:
    envs: Any = ScriptedEnvs(copies=2, goals=50)
    evaluate(_policy, envs, 50)
    started = np.array(envs.started).reshape(-1, 2, 2)
    for task in range(2):
        assert sorted(started[:, task].flatten().tolist()) == list(range(50))


@pytest.mark.parametrize("restart_at", [{1}, {4, 9}, {HORIZON}, {HORIZON + 1, HORIZON + 3}])
def test_a_round_cut_by_a_restarted_worker_is_run_again(restart_at: set[int]) -> None:
    undisturbed: Any = ScriptedEnvs(copies=2)
    envs: Any = ScriptedEnvs(copies=2)
    envs.restart_at = restart_at
    expected, found = evaluate(_policy, undisturbed, 4), evaluate(_policy, envs, 4)
    np.testing.assert_array_equal(found.success, expected.success)
    np.testing.assert_array_equal(found.success_last, expected.success_last)
    np.testing.assert_array_equal(found.episode_return, expected.episode_return)
    assert len(envs.started) == len(undisturbed.started) + len(restart_at)


def test_the_number_of_episodes_may_be_numpys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        evaluate_run(tmp_path, episodes=np.int64(5))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="episodes must be a positive integer; found True"):
        evaluate_run(tmp_path, episodes=True)
