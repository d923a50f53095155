"""Training episodes counted by hand."""

from __future__ import annotations

import numpy as np

from mtrl.training.stepper import RolloutStatistics


def _add(statistics: RolloutStatistics, reward: list[float], success: list[float], ended: list[bool]) -> None:
    statistics.add(np.array(reward, np.float32), np.array(success, np.float32), np.array(ended))


def test_means_over_the_episodes_that_ended_and_success_at_any_step() -> None:
    statistics = RolloutStatistics(1, 2)
    _add(statistics, [1.0, 10.0], [1.0, 0.0], [False, False])
    _add(statistics, [2.0, 20.0], [0.0, 0.0], [True, False])
    assert statistics.pop_means()[0] == {"rollout/ep_rew_mean": 3.0, "rollout/success_rate": 1.0}
    assert statistics.pop_means() == ({}, {})
    _add(statistics, [4.0, 30.0], [0.0, 0.0], [True, True])
    # Environment 0 began a new episode of return 4, environment 1 ends one of return 60; neither succeeds.
    assert statistics.pop_means()[0] == {"rollout/ep_rew_mean": 32.0, "rollout/success_rate": 0.0}


def test_state_continues_unfinished_episodes() -> None:
    statistics, other = RolloutStatistics(1, 1), RolloutStatistics(1, 1)
    _add(statistics, [5.0], [1.0], [False])
    other.load_state_dict(statistics.state_dict())
    _add(other, [1.0], [0.0], [True])
    assert other.pop_means()[0] == {"rollout/ep_rew_mean": 6.0, "rollout/success_rate": 1.0}


def test_each_task_has_its_own_success_rate_and_none_without_an_episode() -> None:
    statistics = RolloutStatistics(3, 2)
    _add(statistics, [0.0] * 6, [1, 0, 1, 0, 0, 0], [True, True, False, True, False, False])
    each = statistics.pop_means()[1]["training_success"]
    np.testing.assert_array_equal(each, [0.5, 0.0, np.nan])


def test_each_task_has_its_own_return_with_or_without_success() -> None:
    statistics = RolloutStatistics(3, 2)
    none = [np.nan] * 6
    _add(statistics, [1.0, 10.0, 5.0, 7.0, 0.0, 0.0], none, [True, True, False, True, False, False])
    means, each = statistics.pop_means()
    assert means == {"rollout/ep_rew_mean": 6.0}
    assert list(each) == ["training_return"]
    np.testing.assert_array_equal(each["training_return"], [5.5, 7.0, np.nan])
