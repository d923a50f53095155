"""What the memory of the agent does at the end of an episode: a time limit ends windows and returns too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mtrl.agents.base import Transitions
from mtrl.agents.sac.agent import SACAgent
from tests.helpers.agents import ACTION, OBS, TASKS, sac_agent, sac_config

GAMMA, STEPS, LAST = 0.9, 6, 2  # the first episode ends with step 2


def _observe(agent: SACAgent, by: str) -> None:
    """Observations count the steps, successors count from 100, and every reward is 1."""
    none = np.zeros(TASKS, bool)
    for step in range(STEPS):
        obs = np.full((TASKS, OBS), step, np.float32)
        ends = np.full(TASKS, step == LAST)
        flags = (ends, none) if by == "terminated" else (none, ends)
        reward, action = np.ones(TASKS, np.float32), np.zeros((TASKS, ACTION), np.float32)
        agent.observe(Transitions(obs, action, reward, obs + 100, *flags, none))


def _agent(**replay: Any) -> SACAgent:
    return sac_agent(sac_config(sac={"gamma": GAMMA}, replay=replay))


@pytest.mark.parametrize("by", ["terminated", "truncated"])
def test_no_window_of_several_steps_reaches_beyond_the_end_of_its_episode(by: str) -> None:
    agent = _agent(n_step=3)
    _observe(agent, by)
    batch = agent.replay.gather(torch.arange(LAST + 1).expand(TASKS, -1))
    assert batch.discount is not None
    lengths = [LAST + 1 - slot for slot in range(LAST + 1)]
    rewards = torch.tensor([sum(GAMMA**k for k in range(length)) for length in lengths])
    torch.testing.assert_close(batch.reward, rewards.expand(TASKS, -1))
    assert torch.equal(batch.next_obs, torch.full_like(batch.next_obs, 100.0 + LAST))
    bootstraps = 0.0 if by == "terminated" else 1.0  # after a time limit the task would have gone on
    assert torch.equal(batch.not_terminated, torch.full((TASKS, LAST + 1), bootstraps))


@pytest.mark.parametrize("by", ["terminated", "truncated"])
def test_no_return_reaches_beyond_the_end_of_its_episode(by: str) -> None:
    agent = _agent(reward_scaling="return")
    _observe(agent, by)
    returns, running = [], 0.0
    for step in range(STEPS):
        running = GAMMA * running + 1.0
        returns.append(running)
        running = 0.0 if step == LAST else running
    expected = max(float(np.std(returns)), max(returns) / 10)
    assert agent.replay.reward_scale is not None
    torch.testing.assert_close(agent.replay.reward_scale, torch.full((TASKS,), expected))
