"""Steps as CUDA graphs: the same results as eager ones, and what happens where a capture is impossible."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtrl.agents.sac.agent import MTSAC
from mtrl.agents.sac.policy import AgentPolicy
from mtrl.agents.sac.replay import Replay
from mtrl.agents.sac.update import Updater
from mtrl.combiners import COMBINERS
from mtrl.combiners.solvers.bargaining import bargaining_weights
from mtrl.config.schema import NetworkConfig, SacConfig
from mtrl.device.cuda_graph import WARM_UP_CALLS, GraphedStep
from tests.combiners.oracles import ORACLES
from tests.helpers.loss_methods import sac_options

TASKS, OBS, ACTION, BATCH = 5, 6, 4, 8
CUDA = torch.device("cuda")


def _agent(method: str, device: torch.device, seed: int = 0, **options: Any) -> MTSAC:
    return MTSAC(
        num_tasks=TASKS, obs_dim=OBS, action_dim=ACTION,
        network=NetworkConfig(actor_width=32, critic_width=32), sac=SacConfig(final_lr_fraction=0.1),
        method=method, method_options={**sac_options(method), **options}, device=device, seed=seed,
    )  # fmt: skip


def _replay(device: torch.device) -> Replay:
    replay = Replay(
        num_tasks=TASKS, capacity_per_task=64, envs_per_task=16, obs_dim=OBS, action_dim=ACTION,
        device=device, seed=1,
    )  # fmt: skip
    _add(replay, 0)
    return replay


def _add(replay: Replay, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*last: int) -> torch.Tensor:
        return torch.randn(TASKS, 16, *last, generator=generator)

    replay.add(normal(OBS), normal(ACTION).tanh(), normal(), normal(OBS), torch.zeros(TASKS, 16))


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
    cpu = torch.device("cpu")
    ours, plain = _agent("cagrad", cpu), _agent("cagrad", cpu)
    replays = _replay(cpu), _replay(cpu)
    update = Updater(ours, replays[0], BATCH)
    for seed in range(1, 6):
        update()
        plain.update([replays[1].sample(BATCH) for _ in range(plain.num_batches)])
        for replay in replays:
            _add(replay, seed)
    for mine, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_updates_between_two_solves_of_nash_mtl_take_another_sequence_of_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, number = torch.device("cpu"), 0
    solves: list[int] = []

    def counted(gram: torch.Tensor, *, ridge: float) -> torch.Tensor:
        solves.append(number)
        return bargaining_weights(gram, ridge=ridge)

    monkeypatch.setattr("mtrl.combiners.nash_mtl.bargaining_weights", counted)
    agents = [_agent("nash_mtl", cpu, refresh_every=3) for _ in range(2)]
    updates = [Updater(agent, _replay(cpu), BATCH) for agent in agents]
    for number in range(5):  # noqa: B007 - `counted` reads it
        updates[0]()
    assert solves == [0, 0, 3, 3]  # the critics' and the actor's
    agents[1].load_training_state(agents[0].training_state())
    for number in range(5, 8):  # noqa: B007
        updates[1]()
    assert solves[4:] == [6, 6]


GRAPHED: list[tuple[str, dict[str, Any]]] = [
    (name, {}) for name, cls in sorted(COMBINERS.items()) if cls.capturable
]


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "options"), [*GRAPHED, ("nash_mtl", {"refresh_every": 3})])
def test_a_replayed_update_equals_an_eager_one(method: str, options: dict[str, Any]) -> None:
    graphed, eager = (_agent(method, CUDA, **options) for _ in range(2))
    replays = _replay(CUDA), _replay(CUDA)
    update = Updater(graphed, replays[0], BATCH)
    for number in range(4 * WARM_UP_CALLS + 12):
        for agent in (graphed, eager):
            agent.anneal(number / 20)  # a captured step must see new step sizes
        update()
        eager.update([replays[1].sample(BATCH) for _ in range(eager.num_batches)])
        for replay in replays:
            _add(replay, number + 1)  # and new transitions
    assert len(update._graphed._graphs) == (2 if options else 1)
    for mine, expected in zip(graphed.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)
    left, right = graphed.metrics(), eager.metrics()
    for name in ("critic_loss", "actor_loss", "alpha", "critic/weights"):
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_a_graph_takes_up_a_restored_state() -> None:
    source, target = _agent("nash_mtl", CUDA), _agent("nash_mtl", CUDA, seed=1)
    replays = _replay(CUDA), _replay(CUDA)
    updates = [Updater(agent, replay, BATCH) for agent, replay in zip((source, target), replays, strict=True)]
    for _ in range(WARM_UP_CALLS + 3):
        updates[0]()
    target.load_training_state(source.training_state())
    replays[1].load_state_dict(replays[0].state_dict())
    for _ in range(WARM_UP_CALLS + 3):
        for update in updates:
            update()
    for mine, expected in zip(target.parameters(), source.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [True, False])
def test_acting_by_graph_follows_the_parameters_and_the_noise(deterministic: bool) -> None:
    agent = _agent("mean", CUDA)
    policy = AgentPolicy(agent, 2, deterministic=deterministic)
    for number in range(WARM_UP_CALLS + 4):
        obs = torch.randn(TASKS, 2, OBS, generator=torch.Generator().manual_seed(number))
        state = agent.generator.get_state()
        action = policy(obs.flatten(0, 1).numpy())
        agent.generator.set_state(state)
        expected = agent.act(obs.cuda(), deterministic=deterministic).flatten(0, 1).cpu()
        torch.testing.assert_close(torch.from_numpy(action), expected, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            agent.actor.flat.vector.add_(0.01)


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_goes_on_eagerly_with_one_warning(
    capfd: pytest.CaptureFixture[str],
) -> None:
    counter, seen = torch.zeros((), device=CUDA), []

    def step() -> None:
        counter.add_(1)
        seen.append(counter.item())

    graphed = GraphedStep(step, CUDA, what="counting")
    for _ in range(WARM_UP_CALLS + 3):
        graphed()
    assert counter.item() == WARM_UP_CALLS + 3
    assert seen[-1] == WARM_UP_CALLS + 3
    assert capfd.readouterr().err.count("counting cannot be captured") == 1
