"""The scale of rewards against a plain loop over whole histories."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mtrl.agents.sac.returns import ReturnScale

TASKS, ENVS, GAMMA, BOUND = 3, 2, 0.9, 5.0


def _scale() -> ReturnScale:
    return ReturnScale(
        num_tasks=TASKS, envs_per_task=ENVS, gamma=GAMMA, bound=BOUND, device=torch.device("cpu")
    )


def test_scale_is_the_deviation_of_returns_or_their_largest_over_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([1.0, 100.0, 0.01]).unsqueeze(1)
    scale = _scale()
    history: list[list[float]] = [[] for _ in range(TASKS)]
    running = [[0.0] * ENVS for _ in range(TASKS)]
    for step in range(50):
        reward = torch.rand(TASKS, ENVS, generator=generator) * size
        if step == 30:
            reward[0, 0] = 1000.0  # one return far above all others: the bound decides
        ended = torch.rand(TASKS, ENVS, generator=generator) < 0.1
        lost = torch.rand(TASKS, ENVS, generator=generator) < 0.1
        scale.add(reward, ended, lost)
        for task in range(TASKS):
            for env in range(ENVS):
                running[task][env] = GAMMA * running[task][env] + float(reward[task, env])
                if not lost[task, env]:
                    history[task].append(running[task][env])
                if ended[task, env] or lost[task, env]:
                    running[task][env] = 0.0
    expected = []
    for returns in history:
        values = torch.tensor(returns, dtype=torch.float64)
        expected.append(max(float(values.std(correction=0)), float(values.abs().max()) / BOUND))
    assert expected[0] == pytest.approx(1000.0 / BOUND, rel=0.01)
    torch.testing.assert_close(scale.scale.double(), torch.tensor(expected).double(), rtol=1e-5, atol=0)


def test_restored_state_goes_on_with_the_same_scales() -> None:
    one, other = _scale(), _scale()
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(TASKS, ENVS, dtype=torch.bool)
    for _ in range(5):
        one.add(torch.rand(TASKS, ENVS, generator=generator), none, none)
    other.load_state_dict(one.state_dict())
    reward = torch.rand(TASKS, ENVS, generator=generator)
    one.add(reward, none, none)
    other.add(reward, none, none)
    assert torch.equal(one.scale, other.scale)


def test_a_task_that_has_paid_nothing_keeps_a_positive_scale() -> None:
    scale = _scale()
    none = torch.zeros(TASKS, ENVS, dtype=torch.bool)
    scale.add(torch.zeros(TASKS, ENVS), none, none)
    assert (scale.scale > 0).all()


def _history(rewards: torch.Tensor, ended: torch.Tensor) -> np.ndarray:
    """All running returns of rewards [K, E] of one task, by a plain loop."""
    running, seen = np.zeros(rewards.shape[1]), []
    for reward, end in zip(rewards.numpy().astype(np.float64), ended.numpy(), strict=True):
        running = GAMMA * running + reward
        seen.append(running.copy())
        running[end] = 0.0
    return np.concatenate(seen)


@pytest.mark.dear
@pytest.mark.parametrize("quantile", [0.9, 0.99, 0.998])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e4])
def test_with_a_quantile_the_scale_is_that_of_returns_clipped_there(quantile: float, size: float) -> None:
    """The histogram's clip may lie up to a bin, 4.4 %, above numpy's; the moments at that clip are exact."""
    generator = torch.Generator().manual_seed(1)
    scale = ReturnScale(
        num_tasks=1, envs_per_task=4, gamma=GAMMA, bound=BOUND, device=torch.device("cpu"), quantile=quantile
    )
    heavy = torch.randn(400, 4, generator=generator) / torch.rand(400, 4, generator=generator)
    rewards, ended = size * heavy, torch.rand(400, 4, generator=generator) < 0.05
    for reward, end in zip(rewards, ended, strict=True):
        scale.add(reward.unsqueeze(0), end.unsqueeze(0), torch.zeros_like(end).unsqueeze(0))
    returns = _history(rewards, ended)
    exact = np.quantile(np.abs(returns), quantile, method="inverted_cdf")
    scales = [
        max(np.clip(returns, -clip, clip).std(), clip / BOUND)
        for clip in np.linspace(exact, 1.045 * exact, 200)
    ]
    assert min(scales) * (1 - 1e-6) <= float(scale.scale) <= max(scales) * (1 + 1e-6)
    plain = max(returns.std(), np.abs(returns).max() / BOUND)
    assert float(scale.scale) < 0.9 * plain


def _after(episodes: list[tuple[int, float, float]], quantile: float | None) -> float:
    """The scale after episodes of 20 steps in 20 environments.

    They are given as their number, the first environment's reward of every step and that of the others.
    """
    scale = ReturnScale(
        num_tasks=1, envs_per_task=20, gamma=GAMMA, bound=BOUND, device=torch.device("cpu"), quantile=quantile
    )
    for number, first, others in episodes:
        reward, none = torch.tensor([[first] + 19 * [others]]), torch.zeros(1, 20, dtype=torch.bool)
        for step in range(20 * number):
            scale.add(reward, torch.full((1, 20), step % 20 == 19), none)
    return float(scale.scale)


@pytest.mark.dear
def test_a_lucky_episode_does_not_shrink_rewards_for_good_and_success_that_lasts_does() -> None:
    poor, lucky, solved = (25, 0.01, 0.01), (1, 10.0, 0.01), (5, 10.0, 10.0)
    largest = 10.0 * (1 - GAMMA**20) / (1 - GAMMA)
    assert _after([lucky, poor], None) == pytest.approx(largest / BOUND, rel=1e-6)
    assert _after([lucky, poor], 0.995) == pytest.approx(_after([poor], None), rel=0.05)
    learnt = [lucky, poor, solved]
    assert _after(learnt, 0.995) == pytest.approx(_after(learnt, None), rel=0.05)


def test_the_quantiles_state_goes_on_and_lost_rows_are_not_in_it() -> None:
    def made() -> ReturnScale:
        return ReturnScale(
            num_tasks=TASKS,
            envs_per_task=ENVS,
            gamma=GAMMA,
            bound=BOUND,
            device=torch.device("cpu"),
            quantile=0.95,
        )

    one, other, clean = made(), made(), made()
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(TASKS, ENVS, dtype=torch.bool)
    for _ in range(30):
        reward = torch.randn(TASKS, ENVS, generator=generator)
        one.add(reward, none, none)
        clean.add(reward, none, none)
    lost = none.clone()
    lost[:, 1] = True
    one.add(torch.full((TASKS, ENVS), 1e6), none, none | True)
    assert torch.equal(one.scale, clean.scale)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    reward = torch.randn(TASKS, ENVS, generator=generator)
    one.add(reward, none, lost)
    other.add(reward, none, lost)
    assert torch.equal(one.scale, other.scale)
