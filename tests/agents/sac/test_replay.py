"""Replay against integers that say where each transition came from."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtrl.agents.sac.replay
from mtrl.agents.sac.replay import Replay, replay_bytes
from mtrl.errors import UserError
from tests.helpers.checkpoints import assert_same, stored_rows

TASKS, OBS, ACTION = 3, 2, 1
CPU = torch.device("cpu")


def _replay(capacity: int = 10, envs: int = 1, **options: Any) -> Replay:
    return Replay(
        num_tasks=TASKS, capacity_per_task=capacity, envs_per_task=envs, obs_dim=OBS, action_dim=ACTION,
        device=CPU, seed=0, **options,
    )  # fmt: skip


def _transition(step: int, envs: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Every number is 1000 * task + 10 * step + env, next_obs half a unit more."""
    code = 1000.0 * torch.arange(TASKS).view(-1, 1) + 10 * step + torch.arange(envs)
    obs = code.unsqueeze(-1).expand(TASKS, envs, OBS)
    return obs, code.unsqueeze(-1), code, obs + 0.5, torch.zeros(TASKS, envs)


def test_sampled_fields_belong_together_and_stay_with_their_task() -> None:
    replay = _replay(envs=2)
    for step in range(4):
        replay.add(*_transition(step, envs=2))
    batch = replay.sample(8)
    assert batch.obs.shape == (TASKS, 8, OBS)
    assert batch.reward.shape == (TASKS, 8)
    assert torch.equal(batch.obs[..., 0], batch.reward)
    assert torch.equal(batch.action[..., 0], batch.reward)
    assert torch.equal(batch.next_obs, batch.obs + 0.5)
    assert torch.equal((batch.reward // 1000).long(), torch.arange(TASKS).view(-1, 1).expand(TASKS, 8))
    assert bool((batch.not_terminated == 1).all())


def test_after_wrapping_only_the_newest_transitions_can_be_drawn_and_all_of_them_are() -> None:
    replay = _replay(capacity=5)
    for step in range(13):
        replay.add(*_transition(step))
    drawn = {int(code) for _ in range(40) for code in replay.sample(5).reward[0]}
    assert drawn == {80, 90, 100, 110, 120}
    assert replay.size == 5


def test_before_it_is_full_nothing_unwritten_is_drawn() -> None:
    replay = _replay(capacity=100)
    for step in range(1, 4):
        replay.add(*_transition(step))
    drawn = {int(code) for _ in range(40) for code in replay.sample(3).reward[1]}
    assert drawn == {1010, 1020, 1030}


def test_capacity_is_a_multiple_of_the_copies_so_that_wrapping_splits_no_step() -> None:
    replay = _replay(capacity=7, envs=3)
    for step in range(5):
        replay.add(*_transition(step, envs=3))
    assert replay.capacity == 6
    drawn = {int(code) for _ in range(60) for code in replay.sample(6).reward[0]}
    assert drawn == {30, 31, 32, 40, 41, 42}


def test_tasks_draw_independent_indices() -> None:
    replay = _replay(capacity=1000)
    for step in range(1000):
        replay.add(*_transition(step))
    codes = replay.sample(500).reward % 1000 // 10
    assert float((codes[0] == codes[1]).float().mean()) < 0.05


def test_termination_is_stored_and_truncation_is_not_termination() -> None:
    replay = _replay()
    obs, action, reward, next_obs, terminated = _transition(0)
    terminated[1] = 1
    replay.add(obs, action, reward, next_obs, terminated)
    assert replay.sample(1).not_terminated.flatten().tolist() == [1.0, 0.0, 1.0]


def test_an_underfilled_buffer_refuses_to_sample() -> None:
    replay = _replay()
    replay.add(*_transition(0))
    with pytest.raises(ValueError, match=r"cannot sample 2 .* 1 are stored"):
        replay.sample(2)


def test_buffers_that_do_not_fit_are_refused_with_a_size_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtrl.agents.sac.replay, "free_memory", lambda device: 10_000)
    with pytest.raises(
        UserError, match=r"need .* GiB on cpu .* Lower replay.capacity_per_task to (\d+)"
    ) as error:
        _replay(capacity=1000)
    suggestion = int(str(error.value).split(" to ")[1].split()[0])
    assert replay_bytes(TASKS, suggestion, OBS, ACTION) <= 10_000
    _replay(capacity=suggestion)


def test_state_round_trip_continues_the_same_draws() -> None:
    replay, other = _replay(capacity=5), _replay(capacity=5)
    for step in range(7):
        replay.add(*_transition(step))
    replay.sample(4)
    other.load_state_parts(replay.state_parts())
    for step in range(7, 9):
        replay.add(*_transition(step))
        other.add(*_transition(step))
        assert all(torch.equal(a, b) for a, b in zip(replay.sample(4)[:5], other.sample(4)[:5], strict=True))


def test_share_of_high_rewards_compares_the_newest_tenth_with_all_that_is_stored() -> None:
    """100 rows, the ring written once and a half; task 0 pays more with time, task 1 less, task 2 alike."""
    replay = Replay(
        num_tasks=3, capacity_per_task=100, envs_per_task=2, obs_dim=1, action_dim=1,
        device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    for step in range(75):
        reward = torch.tensor([step, -step, step % 5.0]).unsqueeze(1).expand(3, 2)
        zero = torch.zeros(3, 2, 1)
        replay.add(zero, zero, reward, zero, torch.zeros(3, 2))
    assert replay.high_reward_share().tolist() == pytest.approx([1.0, 0.0, 0.0])


@pytest.mark.dear
def test_scaled_rewards_have_unit_second_moment_and_stored_ones_stay_raw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mtrl.agents.sac.replay, "EMA_RATE", 5e-3)
    plain, scaled, shrunk = (_replay(capacity=1200, reward_scaling=how) for how in ("none", "ema", "shrink"))
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.1, 1.0, 50.0]).view(-1, 1)
    for _ in range(1200):
        obs, action, _, next_obs, terminated = _transition(0)
        reward = scale * torch.randn(TASKS, 1, generator=generator)
        for replay in (plain, scaled, shrunk):
            replay.add(obs, action, reward, next_obs, terminated)
    # The running moment has all but forgotten its start; the root's own spread is about 4 percent.
    # All three draw the same rows: their streams have one seed.
    raw, unit, bounded = (replay.sample(64).reward for replay in (plain, scaled, shrunk))
    torch.testing.assert_close((raw / unit).mean(1, keepdim=True), scale, rtol=0.1, atol=0.01)
    torch.testing.assert_close(
        (raw / bounded).mean(1, keepdim=True), scale.clamp(min=1.0), rtol=0.1, atol=0.01
    )
    assert torch.equal(stored_rows(plain.state_parts()), stored_rows(scaled.state_parts()))


def _lost(*rows: tuple[int, int], envs: int) -> Tensor:
    lost = torch.zeros(TASKS, envs, dtype=torch.bool)
    for task, env in rows:
        lost[task, env] = True
    return lost


@pytest.mark.parametrize("before", [1, 3, 5, 6])  # 5 x 2 fills the ring: the next one wraps around
def test_a_lost_row_repeats_the_transition_before_and_others_are_stored(before: int) -> None:
    replay = _replay(capacity=10, envs=2)
    for step in range(before):
        replay.add(*_transition(step, envs=2))
    poison = [torch.where(_lost((1, 0), envs=2).view(TASKS, 2, *[1] * (part.dim() - 2)), torch.nan, part)
              for part in _transition(before, envs=2)]  # fmt: skip
    obs, action, reward, next_obs, _ = poison
    replay.add(obs, action, reward, next_obs, torch.zeros(TASKS, 2), lost=_lost((1, 0), envs=2))
    rows = stored_rows(replay.state_parts())
    slot = 2 * (before % 5)
    newest = rows[:, slot : slot + 2, OBS + ACTION]
    expected = _transition(before, envs=2)[2]
    expected[1, 0] -= 10  # of the step before, the same copy
    assert torch.equal(newest, expected)
    assert torch.isfinite(rows).all()
    assert replay.size == min(2 * (before + 1), 10)


def test_a_step_with_a_lost_row_before_any_transition_is_left_out() -> None:
    replay = _replay(envs=2)
    replay.add(*_transition(0, envs=2), lost=_lost((0, 1), envs=2))
    assert replay.size == 0
    replay.add(*_transition(1, envs=2), lost=_lost(envs=2))
    assert replay.size == 2


@pytest.mark.dear
def test_ema_divides_by_the_running_deviation_about_a_running_mean_and_shrink_by_that_about_zero() -> None:
    """As in mtenv's NormalizedEnv, step by step."""
    for scaling, centred in (("ema", True), ("shrink", False)):
        replay = _replay(capacity=6000, reward_scaling=scaling)
        generator = np.random.default_rng(0)
        mean, variance = np.zeros(TASKS), np.ones(TASKS)
        for _ in range(1000):
            reward = 5.0 + generator.standard_normal((TASKS, 1)).astype(np.float32)
            obs, action, _, next_obs, terminated = _transition(0)
            replay.add(obs, action, torch.from_numpy(reward).expand_as(terminated), next_obs, terminated)
            mean = 0.999 * mean + 0.001 * reward[:, 0] if centred else mean
            variance = 0.999 * variance + 0.001 * (reward[:, 0] - mean) ** 2
        scale = replay.reward_scale
        assert scale is not None
        np.testing.assert_allclose(scale, variance**0.5, rtol=1e-3)


def test_lost_rows_do_not_enter_the_reward_scale() -> None:
    scales = []
    for reward in (0.0, 1e6):
        replay = _replay(envs=1, reward_scaling="ema")
        replay.add(*_transition(1))
        parts = list(_transition(2))
        parts[2] = parts[2].clone()
        parts[2][1] = reward
        replay.add(parts[0], parts[1], parts[2], parts[3], parts[4], lost=_lost((1, 0), envs=1))
        scales.append(replay.state_parts()["replay"]["second_moment"].clone())
    assert torch.equal(*scales)


@pytest.mark.parametrize("before", [3, 6, 13])  # partly filled, full, wrapped
@pytest.mark.parametrize("piece_bytes", [1, 150, 1 << 20])
def test_a_view_is_read_as_it_was_whatever_is_added_between_its_pieces(
    before: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtrl.agents.sac.replay, "PIECE_BYTES", piece_bytes)
    replay = _replay(capacity=6)
    for step in range(before):
        replay.add(*_transition(step))
    expected = stored_rows(replay.state_parts())
    parts = replay.state_parts()
    held = set(expected[0, :, 0].int().tolist())
    assert held == {10 * step for step in range(max(0, before - 6), before)}
    read = {}
    for number, (name, part) in enumerate(parts.items()):
        for step in range(4):  # some slots twice
            replay.add(*_transition(before + 4 * number + step))
        read[name] = part() if callable(part) else part
    assert torch.equal(stored_rows(read), expected)
    assert not torch.equal(stored_rows(replay.state_parts())[:, : replay.size], expected)


def test_rows_are_put_aside_only_as_long_as_somebody_may_read_them() -> None:
    replay = _replay(capacity=5)
    replay.add(*_transition(0))
    parts = replay.state_parts()
    assert len(replay._views) == 1
    del parts
    assert len(replay._views) == 0


def test_a_ring_is_restored_without_a_second_one_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtrl.agents.sac.replay, "PIECE_BYTES", 1)  # a piece for each slot
    replay, restored = _replay(capacity=8), _replay(capacity=8)
    for step in range(11):
        replay.add(*_transition(step))
    made: list[weakref.ref[Tensor]] = []
    most = 0

    def counted(part: Any) -> Any:
        nonlocal most
        piece = part()
        made.append(weakref.ref(piece["rows"]))
        most = max(most, sum(rows() is not None for rows in made))
        return piece

    parts = {
        name: partial(counted, part) if callable(part) else part
        for name, part in replay.state_parts().items()
    }
    restored.load_state_parts(parts)
    assert len(made) == 8
    assert most == 1
    assert_same(restored.state_parts()["replay"], replay.state_parts()["replay"])
    assert torch.equal(stored_rows(restored.state_parts()), stored_rows(replay.state_parts()))


def test_the_share_of_high_rewards_is_a_tenth_where_every_episode_is_alike() -> None:
    copies, capacity = 1_000, 100_000
    replay = Replay(
        num_tasks=1,
        capacity_per_task=capacity,
        envs_per_task=copies,
        obs_dim=1,
        action_dim=1,
        device=CPU,
        seed=0,
    )
    zero = torch.zeros(1, copies, 1)
    for _ in range(capacity // copies):  # slots hold 0 to 49 again and again, as episodes of one copy would
        replay.add(zero, zero, (torch.arange(copies) % 50.0).unsqueeze(0), zero, torch.zeros(1, copies))
    assert 0.05 < replay.high_reward_share().item() < 0.15
