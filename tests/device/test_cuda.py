"""Steps as CUDA graphs: the same results as eager ones, and what happens where a capture is impossible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mtrl.agents.base import Transitions
from mtrl.agents.sac.agent import SACAgent
from mtrl.combiners import COMBINERS
from mtrl.device import cpu
from mtrl.device.cuda import WARM_UP_CALLS, GraphedStep
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
@pytest.mark.parametrize("method", sorted(COMBINERS))
def test_a_replayed_update_equals_an_eager_one(method: str) -> None:
    graphed, eager = (_agent(method, CUDA) for _ in range(2))
    for number in range(4 * WARM_UP_CALLS + 12):
        for agent in (graphed, eager):
            agent.update.anneal(number / 20)  # a captured step must see new learning rates
        graphed.update_from_replay()
        _eager_update(eager)
        for agent in (graphed, eager):
            _observe(agent, number + 1)  # and new transitions
    assert graphed._captured._graphed._captured
    for mine, expected in zip(graphed.update.parameters(), eager.update.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=str)
@pytest.mark.parametrize("updates_before", [0, WARM_UP_CALLS + 3])
def test_a_graph_takes_up_a_restored_state_and_leaves_its_source_alone(
    device: torch.device, updates_before: int
) -> None:
    source, undisturbed, target = (_agent("nash_mtl", device, seed) for seed in (0, 0, 1))
    for _ in range(updates_before):  # of which the last are replays of a graph
        target.update_from_replay()
    for _ in range(WARM_UP_CALLS + 3):
        for agent in (source, undisturbed):
            agent.update_from_replay()
    target.load_state(source.state())
    for _ in range(WARM_UP_CALLS + 3):
        for agent in (source, undisturbed, target):
            agent.update_from_replay()
    for agent in (source, target):
        for mine, expected in zip(agent.update.parameters(), undisturbed.update.parameters(), strict=True):
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
        expected = agent.update.mode(torch.from_numpy(obs).view(TASKS, 2, OBS).cuda())
        found = torch.from_numpy(policy(obs))
        torch.testing.assert_close(found, expected.flatten(0, 1).cpu(), rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            agent.update.actor.flat.vector.add_(0.01)


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=str)
def test_actions_beside_the_updates_are_those_of_the_snapshot(device: torch.device) -> None:
    config = sac_config("mean", sac={"act_on_snapshot": True}, train={"warmup_steps": 1})
    agent = sac_agent(config, envs_per_task=16, device=device)
    _observe(agent, 0)
    for number in range(WARM_UP_CALLS + 5):
        obs = np.random.default_rng(number).normal(size=(TASKS * 16, OBS)).astype(np.float32)
        present = agent.update.actor.flat.vector.detach().clone()
        agent.learn(0.5)  # on CUDA this still runs when the agent acts
        found = agent.act(obs)
        noise = agent._explore._noise
        expected = agent.update.act(torch.from_numpy(obs).view(TASKS, 16, OBS).to(device), noise)
        assert agent.update.snapshot is not None
        assert torch.equal(agent.update.snapshot, present)
        assert not torch.equal(agent.update.snapshot, agent.update.actor.flat.vector)
        torch.testing.assert_close(
            torch.from_numpy(found), expected.flatten(0, 1).cpu(), rtol=1e-5, atol=1e-6
        )
        _observe(agent, number + 1)


@pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=str)
def test_stored_vector_steps_are_those_of_a_cpu(device: torch.device) -> None:
    options = {"reward_scaling": "return", "n_step": 3, "curriculum": 0.5}
    agents = [sac_agent(sac_config("mean", replay=options), envs_per_task=4, device=d) for d in (device, CPU)]
    random = np.random.default_rng(0)
    for step in range(40):  # more than the ring holds, and more calls than the warm-up of a graph
        flags = random.random((3, TASKS * 4)) < 0.2
        numbers = [random.normal(size=(TASKS * 4, size)).astype(np.float32) for size in (OBS, ACTION, OBS)]
        reward = random.normal(size=TASKS * 4).astype(np.float32)
        lost = flags[2] if step % 3 == 0 else np.zeros_like(flags[2])
        for agent in agents:
            agent.observe(Transitions(numbers[0], numbers[1], reward, numbers[2], flags[0], flags[1], lost))
    (found, expected) = (agent.replay for agent in agents)
    torch.testing.assert_close(found._rows.cpu(), expected._rows, rtol=0, atol=0)
    assert torch.equal(found._ended.cpu(), expected._ended)
    assert (found.size, found._next) == (expected.size, expected._next)
    assert int(found._newest) == (found._next // 4 - 1) % (found.capacity // 4)
    assert found.reward_scale is not None
    torch.testing.assert_close(found.reward_scale.cpu(), expected.reward_scale, rtol=1e-6, atol=0)


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


def test_a_loaded_optimiser_keeps_its_tensors_and_shares_none_with_the_state() -> None:
    source, target, fresh = (_agent("mean", CPU, seed) for seed in range(3))
    for agent in (source, target):
        agent.update_from_replay()
    state = source.state()
    moments = [values for one in target.update.optimizers for values in one.state.values()]
    places = [value.data_ptr() for values in moments for value in values.values()]
    for agent in (target, fresh):
        agent.load_state(state)
        for one, theirs in zip(agent.update.optimizers, source.update.optimizers, strict=True):
            for mine, saved in zip(one.state.values(), theirs.state.values(), strict=True):
                for name in ("exp_avg", "exp_avg_sq"):
                    assert torch.equal(mine[name], saved[name])
                    assert mine[name].data_ptr() != saved[name].data_ptr()
    moments = [values for one in target.update.optimizers for values in one.state.values()]
    assert [value.data_ptr() for values in moments for value in values.values()] == places


def test_observing_copies_once_from_pinned_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config = sac_config("mean", replay={"n_step": 3, "reward_scaling": "return"})
    agent = sac_agent(config, envs_per_task=16, device=CPU)
    copies: list[Any] = []
    to = torch.Tensor.to

    def noted(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        copies.extend(arg for arg in args if isinstance(arg, torch.device))
        return to(self, *args, **kwargs)

    _observe(agent, 0)
    monkeypatch.setattr(torch.Tensor, "to", noted)
    _observe(agent, 1)
    assert copies == []


@pytest.mark.parametrize(
    ("device", "setting", "expected"),
    [
        ("cuda", "auto", "high"),
        ("cuda:1", "auto", "high"),
        ("cpu", "auto", "highest"),
        ("cuda", "highest", "highest"),
        ("cpu", "medium", "medium"),
    ],
)
def test_products_are_tf32_on_cuda_unless_another_precision_is_asked_for(
    device: str, setting: str, expected: str
) -> None:
    before = torch.get_float32_matmul_precision()
    with cpu.process_settings(None, setting, torch.device(device)):
        assert torch.get_float32_matmul_precision() == expected
    assert torch.get_float32_matmul_precision() == before


def test_deterministic_settings_leave_uninitialised_memory_alone() -> None:
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    with cpu.process_settings(None, "highest", CPU, deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not settings.fill_uninitialized_memory
    assert settings.fill_uninitialized_memory == before


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_deterministic_mode_that_only_warns_is_restored(deterministic: bool) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with cpu.process_settings(None, "highest", CPU, deterministic=deterministic):
            assert torch.is_deterministic_algorithms_warn_only_enabled() != deterministic
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_policies_of_evaluations_are_made_once_and_follow_the_parameters() -> None:
    agent = _agent("mean", CPU)
    policy, obs = agent.policy(2), np.ones((TASKS * 2, OBS), dtype=np.float32)
    before = policy(obs)
    agent.update_from_replay()
    assert agent.policy(2) is policy
    assert agent.policy(1) is not policy
    assert not np.array_equal(policy(obs), before)
