"""Replayed updates are the eager ones: phases of methods, solves of the host between graphs, every method."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from mtrl.agents.base import Transitions
from mtrl.agents.captured import CapturedUpdate
from mtrl.agents.sac.agent import SACAgent
from mtrl.combiners import COMBINERS, Combiner, make_combiner
from mtrl.combiners.solvers import backends
from mtrl.combiners.solvers.backends import by_host, handed_to
from mtrl.device.cuda import WARM_UP_CALLS, GraphedStep
from tests.helpers import recording
from tests.helpers.agents import ACTION, OBS, TASKS, sac_agent, sac_config
from tests.helpers.evaluators import Linear
from tests.helpers.matrices import jacobian

CUDA = torch.device("cuda:1")


def _observed(agent: SACAgent, seed: int) -> None:
    random = np.random.default_rng(seed)

    def normal(*last: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return random.normal(size=(TASKS * 8, *last)).astype(np.float32)

    none = np.zeros(TASKS * 8, dtype=bool)
    agent.observe(Transitions(normal(OBS), np.tanh(normal(ACTION)), normal(), normal(OBS), none, none, none))


def _agents(method: str, options: dict[str, Any], **settings: Any) -> tuple[SACAgent, SACAgent]:
    """One whose updates are captured, and an eager one."""
    agents = []
    for _ in range(2):
        agent = sac_agent(sac_config(method, options=options, **settings), envs_per_task=8)
        _observed(agent, 0)
        agents.append(agent)
    update = agents[0].update
    combiners = update.critic.combiner, update.actor.combiner
    agents[0]._captured = CapturedUpdate(agents[0]._update_once, combiners, CUDA)
    return agents[0], agents[1]


def _same_after(updates: int, graphed: SACAgent, eager: SACAgent) -> None:
    for number in range(updates):
        for agent in (graphed, eager):
            agent.update_from_replay()
            _observed(agent, number + 1)
    # Replayed copies round as eager ones do, but for solves that the other road hands to NumPy.
    for (name, mine), expected in zip(
        graphed.update.state_dict().items(), eager.update.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7, equal_nan=True, msg=name)


# A period of the default refreshes, several times, and graphs of all phases have been captured.
LONG = {"every": 50, "normscale": 50}


@pytest.mark.dear
@pytest.mark.parametrize("method", ["every", "turns", "aligned_mtl"])
def test_a_replayed_update_equals_an_eager_one(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recording.install(monkeypatch)
    options = {"refresh_every": 3} if method == "every" else {}
    _same_after(14, *_agents(method, options, sac={"actor_every": 2} if method == "turns" else {}))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(COMBINERS))
def test_replayed_updates_of_every_method_equal_eager_ones(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording.install(monkeypatch)
    _same_after(LONG.get(method, 12), *_agents(method, {}, sac={"actor_every": 2}))


@pytest.mark.slow
@pytest.mark.parametrize("base", ["every", "normscale"])
@pytest.mark.parametrize("method", ["turns", "momentum", "blocks"])
def test_phases_within_phases_are_replayed_in_their_order(
    method: str, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording.install(monkeypatch)
    _same_after(40, *_agents(method, {"base": base, "base_options": {"refresh_every": 2}}))


@pytest.mark.dear
@pytest.mark.parametrize("method", ["cagrad", "imgrad"])
def test_beyond_the_kernels_limit_the_host_solves_between_two_graphs(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording.install(monkeypatch)
    for name, problem in backends.PROBLEMS.items():
        monkeypatch.setitem(backends.PROBLEMS, name, problem._replace(most_tasks=TASKS - 1))
    graphed, eager = _agents(method, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that the update runs eagerly
        _same_after(WARM_UP_CALLS + 5, graphed, eager)
    ((parts, _),) = graphed._captured._graphed._captured.values()
    solves = 2 if method == "imgrad" else 1
    assert len(parts) == 1 + 2 * 2 * solves  # critics and actor: graph, solve, graph, ...


def test_what_the_host_makes_is_made_anew_in_each_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    recording.install(monkeypatch)
    given, taken = torch.zeros(2), torch.zeros(2)

    def step() -> None:
        square = given * given
        root = by_host(lambda: torch.from_numpy(np.sqrt(square.numpy())), torch.empty(2))
        taken.copy_(root + 1.0)

    graphed = GraphedStep(step, CUDA, what="counting", host_calls=handed_to)
    for number in range(WARM_UP_CALLS + 4):
        given.fill_(number)
        graphed()
        assert taken.tolist() == [number + 1.0] * 2


def test_a_step_has_a_graph_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    recording.install(monkeypatch)
    total, runs = torch.zeros(()), []

    def step(added: int) -> int:
        runs.append(added)
        total.add_(added)
        return added

    graphed = GraphedStep(step, CUDA, what="counting")
    results = [graphed(number % 2 + 1) for number in range(20)]
    assert results == [1, 2] * 10
    assert float(total) == sum(results)
    assert len(runs) == 2 * (WARM_UP_CALLS + 1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("every", {"refresh_every": 3}),
        ("turns", {}),
        ("normscale", {"refresh_every": 3}),
        ("momentum", {"base": "famo"}),
    ],
)
def test_after_a_failed_capture_the_update_is_the_one_that_was_due(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The capture runs the method's Python and fails after it, before the losses after the step are told."""
    recording.install(monkeypatch)
    directions: list[list[torch.Tensor]] = []
    for device in (CUDA, torch.device("cpu")):
        combiner, made = make_combiner(method, num_tasks=3, **options), []
        combiner.skip_checks()
        given = [Linear(jacobian("iid", 3, seed)) for seed in range(14)]

        def step(combiner: Combiner = combiner, given: list[Linear] = given) -> torch.Tensor:
            direction = combiner.direction(given[0])
            float(direction.sum())  # a read of the host
            if combiner.looks_again:
                combiner.after_step(given[0].losses * torch.tensor([0.9, 1.1, 0.5]))
            return direction

        update = CapturedUpdate(step, [combiner], device)
        fails = pytest.warns(RuntimeWarning, match="the update cannot be captured")
        with fails if device.type == "cuda" else contextlib.nullcontext():
            while given:
                made.append(update())
                del given[0]
        directions.append(made)
    for found, expected in zip(*directions, strict=True):
        torch.testing.assert_close(found, expected)
