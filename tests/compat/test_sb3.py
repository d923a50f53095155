"""Our environments in Stable-Baselines3's hands, against direct stepping and against our own evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtrl
from mtrl.config.schema import EnvConfig, PpoConfig
from mtrl.envs import TaskVectorEnv
from mtrl.errors import UserError
from mtrl.export.run import export_run
from mtrl.training.build import build_envs
from mtrl.training.evaluate import evaluate
from tests.helpers.counting_env import ACTION_DIM, END, SUCCEED, CountingSuite
from tests.helpers.short_runs import random_run

pytest.importorskip("stable_baselines3")

from stable_baselines3 import PPO, SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from mtrl.compat.sb3 import SB3VecEnv

HORIZON = 3


def counting() -> TaskVectorEnv:
    suite = CountingSuite(["task-1", "task-2"])
    return TaskVectorEnv(suite, seed=5, envs_per_task=2, num_workers=1, max_episode_steps=HORIZON)


@pytest.fixture
def bridged(worker_threads: None) -> Iterator[SB3VecEnv]:
    with closing(SB3VecEnv(counting())) as envs:
        yield envs


def test_stepping_equals_direct_stepping(bridged: SB3VecEnv) -> None:
    random = np.random.default_rng(0)
    with closing(counting()) as direct:
        wanted, infos = direct.reset()
        assert np.array_equal(bridged.reset(), wanted)
        assert [info["goal"] for info in bridged.reset_infos] == infos["goal"].tolist()
        for step in range(8):
            actions = random.uniform(-1, 1, (4, ACTION_DIM)).astype(np.float32)
            actions[0, 3] = END if step == 1 else 0.0
            actions[1, 3] = SUCCEED
            obs, reward, terminated, truncated, arrays = direct.step(actions)
            found = bridged.step(actions)
            assert np.array_equal(found[0], obs)
            assert np.array_equal(found[1], reward)
            assert np.array_equal(found[2], terminated | truncated)
            for row, info in enumerate(found[3]):
                assert info["is_success"] == (row == 1)
                assert info["steps"] == arrays["steps"][row]
                ended = bool(terminated[row] or truncated[row])
                assert ("terminal_observation" in info) == ended
                if ended:
                    assert np.array_equal(info["terminal_observation"], arrays["final_obs"][row])
                    assert info["TimeLimit.truncated"] == (not terminated[row])


def test_goals_and_seeds_reach_the_environments(bridged: SB3VecEnv) -> None:
    bridged.set_options({"goal": np.array([4, 3, 2, 1])})
    assert bridged.reset()[:, 1].tolist() == [4, 3, 2, 1]
    drawn = []
    for _ in range(2):
        bridged.seed(9)
        drawn.append(bridged.reset()[:, 1].tolist())
    assert drawn[0] == drawn[1]
    assert bridged.reset()[:, 1].tolist() != drawn[0]


def test_what_cannot_be_reached_is_refused(bridged: SB3VecEnv) -> None:
    assert bridged.get_attr("max_episode_steps", 0) == [HORIZON]
    with pytest.raises(UserError, match="are in the workers"):
        bridged.env_method("anything")
    with pytest.raises(UserError, match="cannot be set"):
        bridged.set_attr("anything", 1)


def test_the_library_s_replay_holds_true_successors_and_time_limits(bridged: SB3VecEnv) -> None:
    model = SAC("MlpPolicy", bridged, learning_starts=1000, buffer_size=400, device="cpu", seed=0)
    model.learn(total_timesteps=4 * 2 * HORIZON)
    replay = model.replay_buffer
    steps, after = replay.observations[: 2 * HORIZON, :, 0], replay.next_observations[: 2 * HORIZON, :, 0]
    wanted = np.tile(np.arange(2 * HORIZON) % HORIZON, (4, 1)).T
    assert np.array_equal(steps, wanted)
    assert np.array_equal(after, wanted + 1)  # at an end too: not the first observation of the next episode
    assert np.array_equal(replay.timeouts[: 2 * HORIZON], wanted == HORIZON - 1)


def test_the_library_s_rollout_bootstraps_time_limits_and_nothing_else(
    bridged: SB3VecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A critic that always says 10 shows where it was asked for the value of a final observation."""
    gamma, steps = 0.5, 2 * HORIZON
    model = PPO("MlpPolicy", bridged, n_steps=steps, batch_size=8, n_epochs=1, gamma=gamma, device="cpu")
    monkeypatch.setattr(
        type(model.policy), "predict_values", lambda _, obs: torch.full((len(obs), 1), 10.0), raising=True
    )
    model.learn(total_timesteps=steps * bridged.num_envs)
    count = np.arange(steps) % HORIZON + 1
    code = np.array([1, 1, 2, 2])
    wanted = 100 * code + count[:, None] + gamma * 10.0 * (count == HORIZON)[:, None]
    np.testing.assert_allclose(model.rollout_buffer.rewards, wanted)


OPTIONS = {"environments": {"usual": "Pendulum-v1", "light": {"id": "Pendulum-v1", "kwargs": {"g": 5.0}}}}
AGENTS: dict[str, dict[str, Any]] = {
    "sac": {},
    "ppo": {"agent": "ppo"},
    "ppo, clipped": {"agent": "ppo", "ppo": PpoConfig(squash="clip")},
}


@pytest.mark.parametrize("changes", AGENTS.values(), ids=AGENTS)
def test_its_evaluation_of_exported_policies_equals_ours(changes: dict[str, Any], tmp_path: Path) -> None:
    changes = {
        **changes,
        "suite": "gymnasium",
        "tasks": ("usual", "light"),
        "suite_options": OPTIONS,
        "env": EnvConfig(envs_per_task=2, max_episode_steps=15),
    }
    config, agent = random_run(tmp_path / "run", **changes)
    exported = mtrl.load_policy(export_run(tmp_path / "run"))
    with closing(build_envs(config, num_workers=1)) as envs:
        ours = evaluate(agent.policy(2), envs, 2).episode_return
        assert np.ptp(ours) > 0
        bridge = SB3VecEnv(envs)
        bridge.set_options({"goal": np.array([0, 1, 0, 1])})
        theirs, lengths = evaluate_policy(
            exported, VecMonitor(bridge), n_eval_episodes=4, return_episode_rewards=True
        )
        assert lengths == [15] * 4
        np.testing.assert_allclose(sorted(theirs), sorted(ours.flatten()), rtol=1e-5)


def test_goals_are_those_of_the_episodes_that_are_played(bridged: SB3VecEnv) -> None:
    obs = bridged.reset()
    seen = []
    for _ in range(4 * HORIZON):
        obs, *_ = bridged.step(np.zeros((4, ACTION_DIM), np.float32))
        assert [info["goal"] for info in bridged.reset_infos] == obs[:, 1].tolist()
        seen.append(tuple(obs[:, 1]))
    assert len(set(seen)) > 1
