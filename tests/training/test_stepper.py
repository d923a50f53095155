"""Updates that run while the environments step are the updates of a loop that does one after the other."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from mtrl.config.schema import EnvConfig, SacConfig, TrainConfig
from mtrl.training.build import build_envs
from mtrl.training.stepper import RunState, Stepper
from tests.helpers.checkpoints import stored_rows
from tests.helpers.short_runs import COUNTING, config

STEPS = 45


def _trained(*, overlap: bool) -> dict[str, Any]:
    settings = config(**COUNTING, steps=STEPS, method="cagrad")
    with closing(build_envs(settings, num_workers=2)) as envs:
        if not overlap:
            results: list[Any] = []
            start, wait = envs.step_async, envs.step_wait

            def whole_step(actions: Any) -> None:
                start(actions)
                results.append(wait())

            envs.step_async, envs.step_wait = whole_step, results.pop  # type: ignore[method-assign]
        state = RunState(settings, envs, torch.device("cpu"))
        stepper = Stepper(settings, state)
        stepper.begin()
        for step in range(STEPS):
            stepper.vector_step(step)
        stored = state.agent.state()
        return {"vector": stored["agent"]["update"]["critic.flat.vector"], "rows": stored_rows(stored)}


def test_a_restart_in_the_first_vector_step_only_lengthens_the_warm_up() -> None:
    train = TrainConfig(warmup_steps=8, num_threads=1)
    settings = config(**COUNTING, steps=12, train=train, sac=SacConfig(batch_per_task=8))
    with closing(build_envs(settings, num_workers=1)) as envs:
        state = RunState(settings, envs, torch.device("cpu"))
        agent: Any = state.agent
        stepper, wait = Stepper(settings, state), envs.step_wait
        steps: list[int] = []

        def restarted_at_first() -> Any:
            *values, infos = wait()
            infos["restarted"] = np.full(envs.num_envs, not steps)
            steps.append(1)
            return *values, infos

        envs.step_wait = restarted_at_first  # type: ignore[method-assign]
        stepper.begin()
        for step in range(12):
            stepper.vector_step(step)
            if step == 8:
                assert agent.replay.size == 8
                assert agent.updates == 0
        assert agent.updates == 3


@pytest.mark.dear
def test_overlap_changes_no_number() -> None:
    beside, after = _trained(overlap=True), _trained(overlap=False)
    assert torch.equal(beside["vector"], after["vector"])
    assert torch.equal(beside["rows"], after["rows"])


def test_an_agent_learns_from_rewards_in_another_unit_and_returns_keep_their_own() -> None:
    pendulums = {
        "cents": {"id": "Pendulum-v1", "reward_factor": 100, "success_return": -1e9},
        "euros": {"id": "Pendulum-v1", "success_return": 0.0},
    }
    settings = config(
        suite="gymnasium",
        tasks=("cents", "euros"),
        suite_options={"environments": pendulums},
        env=EnvConfig(envs_per_task=2, num_workers=1, max_episode_steps=10),
        steps=10,
    )
    with closing(build_envs(settings, num_workers=1)) as envs:
        state = RunState(settings, envs, torch.device("cpu"))
        stepper, wait, rewards = Stepper(settings, state), envs.step_wait, []

        def noted() -> Any:
            result = wait()
            rewards.append(result[1].copy())
            return result

        envs.step_wait = noted  # type: ignore[method-assign]
        stepper.begin()
        for step in range(10):
            stepper.vector_step(step)
        stored = stored_rows(state.agent.state())[
            ..., 3 + 1
        ].numpy()  # [T, 20], behind observation and action
        means, each = state.rollout.pop_means()
    raw = np.array(rewards).reshape(10, 2, 2)  # step, task, copy
    own = raw.transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_allclose(stored, own * np.array([[100.0], [1.0]]), rtol=1e-6)
    np.testing.assert_allclose(each["training_return"], own.sum(1) / 2, rtol=1e-6)
    assert means["rollout/ep_rew_mean"] < 0
    np.testing.assert_array_equal(each["training_success"], [1.0, 0.0])


def test_where_a_resumed_run_begins_new_episodes_its_agent_sees_where_the_last_step_led() -> None:
    """PPO bootstraps that step from there; the first step after the resume is no transition."""
    settings = config(**COUNTING, steps=9, env=EnvConfig(resume="restart"))
    moves: list[Any] = []
    with closing(build_envs(settings, num_workers=1)) as envs:
        state = RunState(settings, envs, torch.device("cpu"))
        stepper = Stepper(settings, state)
        stepper.begin()
        for step in range(3):
            stepper.vector_step(step)
        resumed: Any = RunState(settings, envs, torch.device("cpu"))
        resumed.load(state.tree())
        resumed.agent.observe = moves.append
        for step in (3, 4):
            Stepper(settings, resumed).vector_step(step)
    assert state.obs is not None
    first, second = moves
    assert first.lost.all() and not second.lost.any()
    np.testing.assert_array_equal(first.obs, state.obs)
    assert not np.array_equal(second.obs, first.next_obs)
