"""Advantages against a case computed by hand, other packages' wrong answers, and Stable-Baselines3."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.agents.ppo.advantages import advantages, explained_variance, standardised

GAMMA, LAMBDA = 0.9, 0.5
# Rewards 1, 2, 3 and values 0.5, 1, 1.5; the time limit ends the episode after the second row, in a state
# worth 4; the rollout ends in a state worth 2. By hand:
#   third:  3 + .9 * 2 - 1.5 = 3.3
#   second: 2 + .9 * 4 - 1 = 4.6, and nothing of the third, which is another episode
#   first:  1 + .9 * 1 - .5 + .45 * 4.6 = 3.47
BY_HAND = [3.47, 4.6, 3.3]


def three(**changes: Any) -> list[float]:
    row: dict[str, list[float]] = {
        "reward": [1.0, 2.0, 3.0],
        "value": [0.5, 1.0, 1.5],
        "next_value": [1.0, 4.0, 2.0],
        "terminated": [0, 0, 0],
        "ended": [0, 1, 0],
        "lost": [0, 0, 0],
        **changes,
    }
    tensors = {name: torch.tensor(values, dtype=torch.float64).view(1, 3, 1) for name, values in row.items()}
    flags = {name: tensors.pop(name) > 0 for name in ("terminated", "ended", "lost")}
    return advantages(**tensors, **flags, gamma=GAMMA, gae_lambda=LAMBDA).flatten().tolist()


def test_a_time_limit_is_bootstrapped_from_the_true_final_observation() -> None:
    assert three() == pytest.approx(BY_HAND, abs=1e-12)


def test_usual_mistakes_give_other_numbers() -> None:
    assert three(terminated=[0, 1, 0]) == pytest.approx([1.85, 1.0, 3.3])  # the time limit as a termination
    assert three(next_value=[1.0, 1.0, 2.0]) == pytest.approx([2.255, 1.9, 3.3])  # the last value twice
    assert three(ended=[0, 0, 0]) == pytest.approx([4.13825, 6.085, 3.3])  # the sum goes on


def test_a_lost_row_has_no_advantage_and_ends_the_sum_of_the_row_before() -> None:
    # first: 1 + .9 * 1 - .5, from the value of the observation that the lost row started with
    assert three(ended=[0, 0, 0], lost=[0, 1, 0], reward=[1, 1e9, 3]) == pytest.approx([1.4, 0.0, 3.3])


def _random(tasks: int = 2, steps: int = 40, copies: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (tasks, steps, copies)
    numbers = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    terminated = torch.rand(shape, generator=generator) < 0.1
    truncated = (torch.rand(shape, generator=generator) < 0.1) & ~terminated
    reward, value, final = numbers.unbind()
    following = torch.cat((value[:, 1:], final[:, -1:]), dim=1)
    return {
        "reward": reward,
        "value": value,
        "next_value": torch.where(truncated | terminated, final, following),
        "terminated": terminated,
        "ended": terminated | truncated,
    }


def test_advantages_are_those_of_stable_baselines3() -> None:
    """It adds gamma times the final value to the reward of a truncated step, then treats it as an end."""
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    spaces = pytest.importorskip("gymnasium.spaces")
    given = _random()
    found = advantages(**given, lost=torch.zeros_like(given["ended"]), gamma=0.97, gae_lambda=0.8)
    tasks, steps, copies = given["reward"].shape
    rows = {name: value.movedim(1, 0).reshape(steps, -1).numpy() for name, value in given.items()}
    box = spaces.Box(-1, 1, (1,))
    buffer = buffers.RolloutBuffer(steps, box, box, gamma=0.97, gae_lambda=0.8, n_envs=tasks * copies)
    patched = rows["reward"] + 0.97 * rows["next_value"] * (rows["ended"] & ~rows["terminated"])
    buffer.rewards, buffer.values = patched, rows["value"]
    buffer.advantages = np.zeros_like(patched)
    buffer.episode_starts = np.concatenate((np.zeros((1, tasks * copies)), rows["ended"][:-1])).astype(float)
    buffer.compute_returns_and_advantage(torch.as_tensor(rows["next_value"][-1]), rows["ended"][-1])
    expected = torch.as_tensor(buffer.advantages).view(steps, tasks, copies).movedim(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
def test_the_ends_of_lambda_are_one_step_differences_and_discounted_sums(gae_lambda: float) -> None:
    given = _random(tasks=1, steps=12, copies=1)
    found = advantages(**given, lost=torch.zeros_like(given["ended"]), gamma=0.9, gae_lambda=gae_lambda)
    reward, value, following, terminated, ended = (part.flatten().tolist() for part in given.values())
    for first in range(12):
        total, discount = 0.0, 1.0
        for step in range(first, 12):
            total += discount * reward[step]
            discount *= 0.9
            if ended[step] or step == 11 or gae_lambda == 0.0:
                total += discount * following[step] * (not terminated[step])
                break
        assert float(found[0, first, 0]) == pytest.approx(total - value[first], abs=1e-12)


def test_standardised_over_the_rows_that_count() -> None:
    values = torch.randn(2, 30, generator=torch.Generator().manual_seed(1)) * 5 + 3
    weight = torch.ones(2, 30)
    weight[1, 10:] = 0.0
    found = standardised(values, weight, dim=(1,))
    for task, rows in enumerate((30, 10)):
        own = values[task, :rows]
        torch.testing.assert_close(found[task, :rows], (own - own.mean()) / (own.std() + 1e-8))
    assert not found[1, 10:].any()
    both = standardised(values, torch.ones(2, 30), dim=(0, 1))
    torch.testing.assert_close(both, (values - values.mean()) / (values.std() + 1e-8))


def test_explained_variance_is_one_of_perfect_values_and_zero_of_a_constant() -> None:
    returns = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    value = torch.stack((returns[0], torch.full((50,), 7.0), returns[2] + returns[2]))
    returns[0, 0], value[0, 0] = 99.0, -99.0  # a lost row
    weight = torch.ones(3, 50)
    weight[0, 0] = 0.0
    torch.testing.assert_close(explained_variance(value, returns, weight), torch.tensor([1.0, 0.0, 0.0]))


def test_returns_that_vary_by_rounding_alone_have_no_explained_variance() -> None:
    value = 100.0 * torch.randn(1, 400, generator=torch.Generator().manual_seed(3))
    returns = (0.1 - value) + value  # as GAE computes them with lambda = 1
    assert returns.unique().numel() > 1
    assert explained_variance(value, returns, torch.ones(1, 400)).isnan().all()
