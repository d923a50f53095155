"""Steps as CUDA graphs: the same results as eager ones, and what happens where a capture is impossible."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtrl.agents.base import Transitions
from mtrl.agents.sac.agent import SACAgent
from mtrl.combiners import COMBINERS
from mtrl.device.cuda import WARM_UP_CALLS, GraphedStep
from tests.combiners.oracles import ORACLES
from tests.helpers.agents import ACTION, CPU, OBS, TASKS, sac_agent, sac_config

CUDA = torch.device("cuda")


def _agent(method: str, device: torch.device, seed: int = 0) -> SACAgent:
    config = sac_config(method, seed=seed, sac={"final_lr_fraction": 0.1})
    agent = sac_agent(config, envs_per_task=16, device=device)
    _observe(agent, 0)
    return agent


def _observe(agent: SACAgent, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = TASKS * 16

    def normal(*last: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return random.normal(size=(rows, *last)).astype(np.float32)

    none = np.zeros(rows, dtype=bool)
    agent.observe(Transitions(normal(OBS), np.tanh(normal(ACTION)), normal(), normal(OBS), none, none, none))


def _eager_update(agent: SACAgent) -> None:
    """What `update_from_replay` does, without static tensors and graphs."""
    update, size = agent.update, agent.config.sac.batch_per_task
    batches = [agent.replay.sample(size) for _ in range(update.num_batches)]
    generator = agent._noise_stream.generator
    shape = (len(batches), 2, TASKS, size, ACTION)
    update.step(batches, torch.empty(shape, device=agent.device).normal_(generator=generator))


def test_on_a_cpu_every_call_runs_the_step() -> None:
    counter = torch.zeros(())

    def step() -> None:
        counter.add_(1)

    graphed = GraphedStep(step, torch.device("cpu"), what="counting")
    for _ in range(7):
        graphed()
    assert counter == 7


@pytest.mark.parametrize("method", sorted(COMBINERS))
def test_a_method_that_reads_back_to_the_host_says_that_it_cannot_be_captured(method: str) -> None:
    assert COMBINERS[method].capturable == (not ORACLES[method].reads_host)


def test_updates_by_way_of_the_static_tensors_are_those_of_freshly_drawn_batches() -> None:
    ours, plain = _agent("cagrad", CPU), _agent("cagrad", CPU)
    for seed in range(1, 6):
        ours.update_from_replay()
        _eager_update(plain)
        for agent in (ours, plain):
            _observe(agent, seed)
    for mine, expected in zip(ours.update.parameters(), plain.update.parameters(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("method", sorted(name for name, cls in COMBINERS.items() if cls.capturable))
def test_a_replayed_update_equals_an_eager_one(method: str) -> None:
    graphed, eager = (_agent(method, CUDA) for _ in range(2))
    for number in range(4 * WARM_UP_CALLS + 12):
        for agent in (graphed, eager):
            agent.update.anneal(number / 20)  # a captured step must see new step sizes
        graphed.update_from_replay()
        _eager_update(eager)
        for agent in (graphed, eager):
            _observe(agent, number + 1)  # and new transitions
    assert graphed._graphed[True]._graph is not None
    for mine, expected in zip(graphed.update.parameters(), eager.update.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_a_graph_takes_up_a_restored_state() -> None:
    source, target = _agent("nash_mtl", CUDA), _agent("nash_mtl", CUDA, seed=1)
    for _ in range(WARM_UP_CALLS + 3):
        source.update_from_replay()
    target.load_state(source.state())
    for _ in range(WARM_UP_CALLS + 3):
        for agent in (source, target):
            agent.update_from_replay()
    for mine, expected in zip(target.update.parameters(), source.update.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_state_loads_on_another_device(devices: tuple[str, str]) -> None:
    source, target = (_agent("cagrad", torch.device(name)) for name in devices)
    for _ in range(3):
        source.update_from_replay()
    target.load_state(source.state())
    for mine, expected in zip(target.update.parameters(), source.update.parameters(), strict=True):
        assert torch.equal(mine.cpu(), expected.cpu())
    target.update_from_replay()
    assert not target.failures()


@pytest.mark.gpu
def test_acting_by_graph_follows_the_parameters() -> None:
    agent = _agent("mean", CUDA)
    policy = agent.policy(2)
    for number in range(WARM_UP_CALLS + 4):
        obs = np.random.default_rng(number).normal(size=(TASKS * 2, OBS)).astype(np.float32)
        expected = agent.update.act(torch.from_numpy(obs).view(TASKS, 2, OBS).cuda(), None)
        found = torch.from_numpy(policy(obs))
        torch.testing.assert_close(found, expected.flatten(0, 1).cpu(), rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            agent.update.actor.flat.vector.add_(0.01)


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_goes_on_eagerly_with_one_warning() -> None:
    counter, seen = torch.zeros((), device=CUDA), []

    def step() -> None:
        counter.add_(1)
        seen.append(counter.item())

    graphed = GraphedStep(step, CUDA, what="counting")
    with pytest.warns(RuntimeWarning, match="counting cannot be captured") as warned:
        for _ in range(WARM_UP_CALLS + 3):
            graphed()
    assert len(warned) == 1
    assert counter.item() == WARM_UP_CALLS + 3
    assert seen[-1] == WARM_UP_CALLS + 3
