"""n-step windows against a simulation that counts, and against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.agents.sac.replay import Replay

TASKS, ENVS = 2, 3


def _replay(capacity: int, n_step: int, gamma: float = 0.5, envs: int = ENVS, tasks: int = TASKS) -> Replay:
    return Replay(
        num_tasks=tasks, capacity_per_task=capacity, envs_per_task=envs, obs_dim=1, action_dim=1,
        device=torch.device("cpu"), seed=0, n_step=n_step, gamma=gamma,
    )  # fmt: skip


class Counter:
    """Copies that count their steps: observation = episode * 1000 + step; reward = observation + 1."""

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths  # [T, E] steps per episode
        self.episode, self.step = torch.zeros_like(lengths), torch.zeros_like(lengths)

    def transition(self, terminate: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        obs = (self.episode * 1000 + self.step).float()
        self.step += 1
        ended = self.step >= self.lengths
        successor = (self.episode * 1000 + self.step).float()
        self.episode, self.step = self.episode + ended, self.step * ~ended
        terminated = (ended & terminate).float()
        obs, successor = obs.unsqueeze(-1), successor.unsqueeze(-1)
        return (obs, torch.zeros_like(obs), obs.squeeze(-1) + 1, successor, terminated), ended


@pytest.mark.parametrize("terminate", [False, True])
@pytest.mark.parametrize("steps", [4, 17, 40])
@pytest.mark.parametrize("n_step", [2, 3, 5])
def test_windows_end_with_the_episode_or_the_newest_transition(
    n_step: int, steps: int, terminate: bool
) -> None:
    """Every slot of a ring that is not yet full, or has wrapped around, against the episode's arithmetic."""
    lengths = torch.tensor([[4, 7, 1], [5, 3, 100]])
    replay, counter = _replay(capacity=30, n_step=n_step), Counter(lengths)
    last: Tensor = torch.zeros(0)
    for _ in range(steps):
        parts, ended = counter.transition(terminate)
        replay.add(*parts, ended=ended)
        last = parts[0].squeeze(-1)
    batch = replay.gather(torch.arange(replay.size).expand(TASKS, -1))
    for task in range(TASKS):
        for slot in range(replay.size):
            obs = float(batch.obs[task, slot])
            copy = slot % ENVS
            episode, step = divmod(obs, 1000)
            newest_episode, newest_step = divmod(float(last[task, copy]), 1000)
            end = float(lengths[task, copy])
            complete = episode < newest_episode or newest_step + 1 == end
            known = end if complete else newest_step + 1  # steps of the episode that are stored
            length = int(min(n_step, known - step))
            assert length >= 1
            rewards = sum(0.5**k * (obs + 1 + k) for k in range(length))
            assert float(batch.reward[task, slot]) == pytest.approx(rewards)
            assert float(batch.next_obs[task, slot]) == obs + length
            assert batch.discount is not None
            assert float(batch.discount[task, slot]) == 0.5**length
            terminal = terminate and step + length == end
            assert float(batch.not_terminated[task, slot]) == float(not terminal)


def test_a_truncated_window_bootstraps_from_its_final_observation() -> None:
    """Rewards 1, 2, 4, episode cut after the second: windows 1 + 2/2, 2 and 4."""
    replay = _replay(capacity=3, n_step=3, envs=1, tasks=1)
    row = [(0.0, 1.0, 10.0, False), (10.0, 2.0, 20.0, True), (30.0, 4.0, 40.0, False)]
    for obs, reward, successor, ended in row:
        values = (torch.full((1, 1, 1), obs), torch.zeros(1, 1, 1), torch.full((1, 1), reward))
        replay.add(
            *values, torch.full((1, 1, 1), successor), torch.zeros(1, 1), ended=torch.tensor([[ended]])
        )
    batch = replay.gather(torch.arange(3).unsqueeze(0))
    assert batch.reward.tolist() == [[2.0, 2.0, 4.0]]
    assert batch.next_obs.squeeze(-1).tolist() == [[20.0, 20.0, 40.0]]
    assert batch.discount is not None
    assert batch.discount.tolist() == [[0.25, 0.5, 0.5]]
    assert batch.not_terminated.tolist() == [[1.0, 1.0, 1.0]]


def test_a_window_stops_before_a_transition_that_a_restart_has_cost() -> None:
    replay = _replay(capacity=4, n_step=3, envs=1, tasks=1)
    for step, lost in enumerate([False, False, True, False]):
        obs = torch.full((1, 1, 1), float(step))
        replay.add(
            obs, obs, torch.full((1, 1), 1.0 + step), obs + 1, torch.zeros(1, 1), lost=torch.tensor([[lost]])
        )
    batch = replay.gather(torch.arange(4).unsqueeze(0))
    # 1 + 2/2 up to the step before the loss; its repetition is a window of its own; so is what came after.
    assert batch.reward.tolist() == [[2.0, 2.0, 2.0, 4.0]]
    assert batch.next_obs.squeeze(-1).tolist() == [[2.0, 2.0, 2.0, 4.0]]


def test_resumed_windows_are_the_same() -> None:
    lengths = torch.tensor([[4, 7, 1], [5, 3, 100]])
    replay, other, counter = _replay(30, 3), _replay(30, 3), Counter(lengths)
    for _ in range(14):
        parts, ended = counter.transition(False)
        replay.add(*parts, ended=ended)
    other.load_state_parts(replay.state_parts())
    index = torch.arange(replay.size).expand(TASKS, -1)
    for ours, theirs in zip(replay.gather(index), other.gather(index), strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
