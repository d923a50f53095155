"""The curriculum of the replay against counting: who is admitted, how often each, and after a resume."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.agents.base import Transitions
from mtrl.agents.sac.agent import SACAgent
from mtrl.agents.sac.curriculum import Curriculum
from mtrl.agents.sac.replay import Replay
from tests.helpers.agents import ACTION, CPU, OBS, TASKS, sac_agent, sac_config


def filled(steps: int, curriculum: float, capacity: int = 200) -> Replay:
    replay = Replay(
        num_tasks=TASKS, capacity_per_task=capacity, envs_per_task=1, obs_dim=1, action_dim=1,
        device=CPU, seed=0, curriculum=curriculum,
    )  # fmt: skip
    for step in range(steps):
        one = torch.full((TASKS, 1, 1), float(step))
        replay.add(one, one, one[..., 0], one, torch.zeros(TASKS, 1))
    return replay


def with_errors(replay: Replay) -> tuple[Curriculum, Tensor]:
    """Slot i of the first task has the error i, of the others a permutation of that."""
    assert replay.curriculum is not None
    generator = torch.Generator().manual_seed(1)
    orders = [torch.arange(replay.size), *(torch.randperm(replay.size, generator=generator) for _ in "ab")]
    errors = torch.stack(orders).float()
    replay.curriculum.note(torch.arange(replay.size).expand(TASKS, -1), errors)
    return replay.curriculum, errors


def test_without_a_curriculum_the_draws_are_those_of_the_uniform_sampler() -> None:
    replay = filled(50, 1.0)
    assert replay.curriculum is None
    found = replay.draw(torch.empty(TASKS, 8, dtype=torch.int64))
    generator = filled(50, 1.0)._stream.generator
    assert torch.equal(found, torch.randint(50, (TASKS, 8), generator=generator))


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_those_below_the_quantile_are_drawn_alike_and_no_others(progress: float) -> None:
    replay = filled(200, 0.5)
    curriculum, errors = with_errors(replay)
    curriculum.advance(progress)
    share = min(0.5 + 0.5 * progress, 0.99)
    bound = np.quantile(np.arange(200), share, method="lower")
    counts = torch.zeros(TASKS, 200)
    for _ in range(200):
        index = replay.draw(torch.empty(TASKS, 64, dtype=torch.int64))
        counts.scatter_add_(1, index, torch.ones(TASKS, 64))
    admitted = errors <= float(bound)
    assert (counts[~admitted] == 0).all()
    for task in range(TASKS):
        own = counts[task][admitted[task]]
        expected = 200 * 64 / len(own)
        # Chi-square of n - 1 degrees of freedom: mean n - 1, deviation root of 2 (n - 1).
        free = len(own) - 1
        assert abs(float((own - expected).square().sum() / expected) - free) < 5.0 * (2.0 * free) ** 0.5


def test_what_is_new_is_admitted_again() -> None:
    replay = filled(100, 0.5, capacity=100)
    with_errors(replay)
    for _ in range(5):  # into slots 0 to 4; 95 others keep their errors
        one = torch.zeros(TASKS, 1, 1)
        replay.add(one, one, one[..., 0], one, torch.zeros(TASKS, 1))
    assert replay.curriculum is not None
    assert float(replay.curriculum.bound(100)[0]) == np.quantile(
        [0] * 5 + list(range(5, 100)), 0.5, method="lower"
    )
    drawn = {
        int(slot) for _ in range(50) for slot in replay.draw(torch.empty(TASKS, 32, dtype=torch.int64))[1]
    }
    assert {0, 1, 2, 3, 4} <= drawn


def test_single_draws_are_admitted_too() -> None:
    replay = filled(200, 0.5)
    _, errors = with_errors(replay)
    for _ in range(300):
        index = replay.draw(torch.empty(TASKS, 1, dtype=torch.int64))
        assert (errors.gather(1, index) <= 99.0).all()


def taught(agent: SACAgent, steps: int) -> None:
    generator = np.random.default_rng(0)
    flags = np.zeros(TASKS, dtype=bool)
    for _ in range(steps):
        obs, successor = generator.normal(size=(2, TASKS, OBS)).astype(np.float32)
        action = generator.uniform(-1.0, 1.0, (TASKS, ACTION)).astype(np.float32)
        reward = generator.normal(size=TASKS).astype(np.float32)
        agent.observe(Transitions(obs, action, reward, successor, flags, flags, flags))
        agent.learn(0.25)


def test_an_update_notes_the_errors_of_what_it_drew() -> None:
    agent = sac_agent(
        sac_config(replay={"curriculum": 0.6}, sac={"batch_per_task": 4}, train={"warmup_steps": 8})
    )
    taught(agent, 9)
    curriculum = agent.replay.curriculum
    assert curriculum is not None
    assert curriculum.share == pytest.approx(0.6 + 0.4 * 0.25)
    (seen,) = agent._evaluations
    rows, expected = agent._rows[0], (seen.aux.outputs - seen.aux.target).abs().mean(0)
    for task in range(TASKS):
        for place, slot in enumerate(rows[task].tolist()):
            same = expected[task][rows[task] == slot]
            assert float(curriculum._errors[task, slot]) in same.tolist()
            assert float(curriculum._errors[task, slot]) >= float(expected[task, place])


def test_a_resumed_agent_draws_the_same() -> None:
    config = sac_config(replay={"curriculum": 0.5})
    agent, other = sac_agent(config), sac_agent(config)
    taught(agent, 20)
    parts = {name: part() if callable(part) else part for name, part in agent.state().items()}
    other.load_state(copy.deepcopy(parts))  # as a file would: tensors of its own
    taught(agent, 5)
    taught(other, 5)
    assert torch.equal(agent._rows, other._rows)
    assert torch.equal(agent.update.critic.flat.vector, other.update.critic.flat.vector)


@pytest.mark.parametrize("method", ["m_config", "sdmgrad_os", "cagrad_fast", "turns"])
def test_methods_that_look_at_some_tasks_renew_the_errors_of_these(method: str) -> None:
    agent = sac_agent(sac_config(method, replay={"curriculum": 0.5}))
    curriculum = agent.replay.curriculum
    assert curriculum is not None
    taught(agent, 8)
    for _ in range(12):
        before = curriculum._errors.clone()
        taught(agent, 1)
        changed = (curriculum._errors != before).nonzero().tolist()
        assert changed
        looked_at = [
            (task, int(slot))
            for seen in agent._evaluations
            for task in (range(TASKS) if seen.tasks is None else seen.tasks.tolist())
            for slot in agent._rows[seen.batch][task]
        ]
        # What is written over is forgotten, too.
        new = {(task, slot) for task, slot in map(tuple, changed) if curriculum._errors[task, slot] > 0.0}
        assert new <= set(looked_at)
    assert (curriculum._errors.amax(1) > 0.0).all()  # in the end of every task


@pytest.mark.parametrize("period", [5, 25, 50, 100])
def test_the_bound_does_not_depend_on_what_returns_at_every_kth_slot(period: int) -> None:
    size = 100_000  # of which 4,096 are looked at
    curriculum = Curriculum(num_tasks=1, capacity=size, start=0.5, device=CPU)
    curriculum._errors.copy_(torch.arange(size).remainder(period).float().add(1.0))
    admitted = (curriculum._errors <= curriculum.bound(size)).float().mean()
    assert float(admitted) == pytest.approx(0.5, abs=0.5 / period + 0.03)
