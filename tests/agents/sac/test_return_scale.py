"""The scale of rewards against a plain loop over whole histories."""

from __future__ import annotations

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
        one.add(torch.rand(TASKS, ENVS, generator=generator), none)
    other.load_state_dict(one.state_dict())
    reward = torch.rand(TASKS, ENVS, generator=generator)
    one.add(reward, none)
    other.add(reward, none)
    assert torch.equal(one.scale, other.scale)


def test_a_task_that_has_paid_nothing_keeps_a_positive_scale() -> None:
    scale = _scale()
    scale.add(torch.zeros(TASKS, ENVS), torch.zeros(TASKS, ENVS, dtype=torch.bool))
    assert (scale.scale > 0).all()
