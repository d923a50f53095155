"""The agent around the update: warm-up, burst, noise, what it saves, and where that can be loaded."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.agents import AGENTS
from mtrl.agents.base import Transitions
from mtrl.agents.sac.agent import SACAgent
from mtrl.combiners.base import LossCombiner
from mtrl.device.random_stream import RandomStream
from mtrl.errors import UserError
from tests.helpers.agents import ACTION, OBS, TASKS, sac_agent, sac_config, spec
from tests.helpers.three_tasks import all_methods


def _transitions(random: np.random.Generator, lost: bool = False) -> Transitions:
    def normal(*last: int) -> Any:
        return random.normal(size=(TASKS, *last)).astype(np.float32)

    none = np.zeros(TASKS, dtype=bool)
    return Transitions(
        normal(OBS), np.tanh(normal(ACTION)), normal(), normal(OBS), none, none, np.full(TASKS, lost)
    )


def _live(agent: SACAgent, steps: int, seed: int = 0, lost: frozenset[int] = frozenset()) -> list[int]:
    """Vector steps as the loop makes them; returns the number of updates made in each."""
    random, made = np.random.default_rng(seed), []
    for step in range(steps):
        before = agent.updates
        agent.act(random.normal(size=(TASKS, OBS)).astype(np.float32))
        agent.learn(step / steps)
        agent.observe(_transitions(random, step in lost))
        made.append(agent.updates - before)
    return made


def _parameters(agent: SACAgent) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in agent.update.parameters()])


def test_the_registry_builds_it() -> None:
    agent = AGENTS["sac"](sac_config(), spec(), torch.device("cpu"))
    assert isinstance(agent, SACAgent)


def test_the_burst_is_made_once_with_the_first_updates() -> None:
    agent = sac_agent(sac_config(train={"warmup_steps": 6, "warmup_updates": 3, "updates_per_step": 2}))
    assert _live(agent, 9) == [0] * 6 + [5, 2, 2]


def test_lost_transitions_lengthen_the_warm_up_and_the_burst_waits_for_its_end() -> None:
    """Five transitions are a batch; the first two steps leave none behind."""
    agent = sac_agent(sac_config(train={"warmup_steps": 5, "warmup_updates": 4}))
    assert _live(agent, 9, lost=frozenset({0, 1})) == [0] * 7 + [5, 1]


def test_warm_up_acts_uniformly_and_what_follows_with_the_policy() -> None:
    agent = sac_agent(sac_config(train={"warmup_steps": 200}))
    obs = np.zeros((TASKS, OBS), dtype=np.float32)
    drawn = []
    for _ in range(200):
        drawn.append(agent.act(obs))
        agent.observe(_transitions(np.random.default_rng(0)))
    actions = np.concatenate(drawn)
    assert actions.shape == (200 * TASKS, ACTION)
    assert actions.dtype == np.float32
    assert abs(float(actions.mean())) < 0.05
    assert float(actions.var()) == pytest.approx(1 / 3, abs=0.03)
    with torch.no_grad():
        agent.update.actor.flat.vector.zero_()
        agent.update.actor.flat.named()["head.bias"][0, :ACTION] = 9.0  # a mean that tanh takes to 1
    assert agent.act(obs).min() > 0.99


def test_a_snapshot_acts_with_the_actor_from_before_the_newest_updates() -> None:
    train = {"updates_per_step": 2}
    agent = sac_agent(sac_config(sac={"act_on_snapshot": True}, train=train))
    plain = sac_agent(sac_config(train=train))
    for one in (agent, plain):
        _live(one, 10)
    assert torch.equal(_parameters(agent), _parameters(plain))  # what is learnt from the same transitions
    obs, noise = torch.randn(TASKS, 1, OBS), torch.randn(TASKS, 1, ACTION)
    for _ in range(3):
        before = plain.update.act(obs, noise)
        for one in (agent, plain):
            one.learn(0.5)
        assert not torch.equal(plain.update.act(obs, noise), before)
        assert torch.equal(agent.update.act(obs, noise), before)
        assert torch.equal(agent.update.mode(obs), plain.update.mode(obs))  # evaluation


def test_acting_is_random_in_training_and_repeatable_in_evaluation() -> None:
    agent = sac_agent(sac_config())
    _live(agent, 10)
    obs = np.random.default_rng(1).normal(size=(TASKS, OBS)).astype(np.float32)
    first = agent.act(obs)
    assert np.abs(first).max() <= 1.0
    assert not np.array_equal(first, agent.act(obs))
    policy = agent.policy(1)
    assert np.array_equal(policy(obs), policy(obs))
    assert agent.policy(2)(np.repeat(obs, 2, axis=0)).shape == (2 * TASKS, ACTION)


@pytest.mark.dear
@all_methods("nash_mtl", "gradnorm", "turns", "every", "momentum")
def test_saved_state_continues_bit_for_bit(method: str) -> None:
    agent, other = (sac_agent(sac_config(method, seed=seed, heads="per_task")) for seed in (0, 9))
    _live(agent, 10)
    other.load_state(copy.deepcopy(agent.state()))
    for one in (agent, other):
        _live(one, 3, seed=2)
    for (name, left), right in zip(
        agent.update.state_dict().items(), other.update.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right), name


def test_the_policy_as_data_has_its_standardisation() -> None:
    agent = sac_agent(sac_config(observation_norm="warmup"))
    _live(agent, 10)
    assert agent.update.observation_norm is not None
    mean, deviation = agent.gaussian_policy().standardisation or (None, None)
    seen = agent.replay.observations[:, :8].double()  # the warm-up
    torch.testing.assert_close(mean, seen.mean((0, 1)).float())
    assert deviation is agent.update.observation_norm.deviation


def test_the_policy_part_alone_gives_the_same_actions_and_allocates_no_replay() -> None:
    config = sac_config(sac={"actor_average_rate": 0.1})
    agent = sac_agent(config)
    _live(agent, 12)
    other = sac_agent(config)
    other.load_policy(copy.deepcopy(agent.state()["policy"]))
    obs = np.random.default_rng(1).normal(size=(TASKS, OBS)).astype(np.float32)
    assert np.array_equal(other.policy(1)(obs), agent.policy(1)(obs))
    assert "replay" not in vars(other)
    assert len(pickle.dumps(agent.state()["policy"])) < 20_000


def test_the_policy_part_holds_the_standardisation_of_observations() -> None:
    config = sac_config(observation_norm="warmup")
    agent, other = sac_agent(config), sac_agent(config)
    _live(agent, 12)
    norm = agent.update.observation_norm
    assert norm is not None
    assert not torch.equal(norm.deviation, torch.ones(OBS))
    frozen = norm.mean.clone()
    _live(agent, 5, seed=3)
    assert torch.equal(norm.mean, frozen)
    other.load_policy(copy.deepcopy(agent.state()["policy"]))
    obs = np.random.default_rng(1).normal(size=(TASKS, OBS)).astype(np.float32)
    assert np.array_equal(other.policy(1)(obs), agent.policy(1)(obs))


def test_a_delayed_actor_and_its_temperatures_move_at_every_kth_update_only() -> None:
    agent = sac_agent(sac_config(sac={"actor_every": 3, "actor_average_rate": 0.1}))
    _live(agent, 8)
    moved = []
    for number in range(1, 9):
        kept = (agent.update.actor.flat.vector, agent.update.log_alpha, agent.update.averaged_actor)
        before = [value.detach().clone() for value in kept if value is not None]
        critic = agent.update.critic.flat.vector.detach().clone()
        made = agent.updates
        _live(agent, 1, seed=number)
        assert agent.updates == made + 1
        assert not torch.equal(critic, agent.update.critic.flat.vector)
        after = [value for value in kept if value is not None]
        same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        assert len(set(same)) == 1
        moved.append((made, not same[0]))
    assert moved == [(made, made % 3 == 0) for made, _ in moved]


def test_a_log_line_between_two_steps_of_a_delayed_actor_is_the_same_after_a_resume() -> None:
    """The line before has taken all sums; the next one comes before the actor's next step."""
    config = sac_config("cagrad", sac={"actor_every": 4})
    agent, other = sac_agent(config), sac_agent(config)
    _live(agent, 5)
    while agent.updates % 4 != 1:
        _live(agent, 1)
    agent.metrics()
    other.load_state(copy.deepcopy(agent.state()))
    found = []
    for one in (agent, other):
        _live(one, 2, seed=5)
        assert one.updates % 4 == 3
        found.append(one.metrics())
    assert found[0].scalars["grad/actor_cos_min"] != 0.0  # that of a fresh method
    np.testing.assert_equal(found[1], found[0])


def test_neighbouring_seeds_share_neither_parameters_nor_noise() -> None:
    """Seed 0's noise was seed 1's initialisation."""
    draws = []
    for seed in (0, 1, 2):
        agent = sac_agent(sac_config(seed=seed))
        stream = agent.state()["agent"]["noise"]["state"]
        draws += [stream, agent.replay.state_parts()["replay"]["stream"]["state"]]
    assert len({bytes(draw.numpy()) for draw in draws}) == len(draws)


def test_a_stream_saved_on_another_kind_of_device_is_taken_up_afresh_and_always_the_same_way() -> None:
    stream = RandomStream(3, torch.device("cpu"))
    foreign = stream.state() | {"device": "cuda", "state": torch.arange(16, dtype=torch.uint8)}
    draws = []
    for seed in (0, 1):
        other = RandomStream(seed, torch.device("cpu"))
        other.load_state(foreign)
        draws.append(torch.randn(5, generator=other.generator))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.randn(5, generator=stream.generator))


def test_a_checkpoint_of_another_device_goes_on() -> None:
    agent, other = sac_agent(sac_config("cagrad")), sac_agent(sac_config("cagrad"))
    _live(agent, 10)
    state = copy.deepcopy(agent.state())
    foreign = {"device": "cuda", "state": torch.arange(16, dtype=torch.uint8)}
    state["agent"]["noise"] = state["replay"]["stream"] = foreign
    other.load_state(state)
    assert torch.equal(_parameters(other), _parameters(agent))
    _live(other, 3)
    assert not other.failures()


def test_metrics_are_means_over_tasks_and_updates_and_begin_anew() -> None:
    agent = sac_agent(sac_config("cagrad"))
    _live(agent, 5)
    assert agent.metrics() == ({}, {})
    _live(agent, 10)
    scalars, per_task = agent.metrics()
    assert scalars["train/critic_loss"] == pytest.approx(float(per_task["critic_loss"].mean()))
    assert scalars["train/ent_coef"] == pytest.approx(float(per_task["alpha"].mean()))
    for name in ("critic_loss", "weight", "actor_weight", "critic_grad_norm", "actor_grad_norm"):
        assert per_task[name].shape == (TASKS,)
    assert {"grad/critic_update_norm", "grad/actor_conflict_fraction"} <= scalars.keys()
    assert (per_task["critic_grad_norm"] > 0).all()


class OwnNumbers(LossCombiner):
    """The mean, with a number of its own instead of the weights."""

    name = "own_numbers"

    def _weights(self, losses: Tensor) -> Tensor:
        return torch.full_like(losses, 1.0 / len(losses))

    def metrics(self) -> dict[str, Tensor]:
        return {"own": torch.tensor(7.0)}


def test_a_users_method_need_not_repeat_the_weights_among_its_numbers() -> None:
    agent = sac_agent(sac_config(f"{__name__}:OwnNumbers"))
    _live(agent, 10)
    scalars, per_task = agent.metrics()
    assert scalars["grad/critic_own"] == 7.0
    assert per_task["weight"].tolist() == pytest.approx([1 / TASKS] * TASKS)


@pytest.mark.parametrize("network", ["critic", "actor"])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("loss", torch.zeros(TASKS), "has a number 'loss'.*another name"),
        ("grad/norm", torch.zeros(TASKS), "has a number 'grad/norm'.*another name"),
        ("update_norm", torch.tensor(1.0), "has a number 'update_norm'.*another name"),
        ("ratio", torch.ones(1), r"'ratio' must be .* \[\] or \[3\] or \[3, 3\] for 3 tasks; found \[1\]"),
        ("ratio", 0.5, "'ratio' must be .*; found float"),
        ("weights", torch.tensor(1.0), r"'weights' must be .* \[3\] for 3 tasks; found \[\]"),
    ],
)
def test_a_methods_numbers_that_no_log_line_can_hold_are_refused_at_the_start(
    name: str, value: Any, words: str, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OwnNumbers, "metrics", lambda method: {name: value})
    method = f"{__name__}:OwnNumbers"
    with pytest.raises(UserError, match=f"method {method}.*{words}"):
        sac_agent(sac_config("mean", per_network={f"{network}_method": method}))


@pytest.mark.parametrize("loss", ["squared", "categorical"])
def test_values_and_errors_of_an_update(loss: str) -> None:
    """By hand, on a replay of one transition; both in units of scaled reward."""
    agent = sac_agent(sac_config("mean", critic_loss=loss, sac={"gamma": 0.0}))
    only = _transitions(np.random.default_rng(0))
    for _ in range(10):
        agent.observe(only)
    agent.learn(0.0)
    agent.metrics()
    network, before = agent.update.critic_network, agent.update.critic.flat.vector.detach().clone()
    agent.learn(0.0)
    per_task = agent.metrics().per_task
    inputs = torch.from_numpy(np.concatenate((only.obs, only.action), axis=1)).unsqueeze(1)
    outputs = network.apply(agent.update.critic.flat.named(before), inputs)[:, :, 0]
    both = outputs.squeeze(-1)
    if loss == "categorical":
        atoms = torch.linspace(-10, 10, 51)
        both = (outputs - 2 * atoms.abs()).softmax(-1) @ atoms
    errors = (both - torch.from_numpy(only.reward)).abs().mean(0)  # without a future the reward is the target
    np.testing.assert_allclose(per_task["td_error"], errors.detach(), rtol=1e-4)
    sampled = per_task["alpha"] * -per_task["entropy"] - per_task["actor_loss"]  # loss = alpha log p - value
    np.testing.assert_allclose(per_task["value"], sampled, rtol=1e-3, atol=1e-5)


def test_methods_without_per_task_gradients_report_no_norms() -> None:
    agent = sac_agent(sac_config("mean"))
    _live(agent, 10)
    assert "critic_grad_norm" not in agent.metrics().per_task


def test_a_non_finite_reward_is_blamed_on_its_task() -> None:
    agent = sac_agent(sac_config("cagrad"))
    _live(agent, 10)
    assert agent.failures() == {}
    bad = _transitions(np.random.default_rng(0))
    bad.reward[1] = np.inf
    for _ in range(64):
        agent.observe(bad)
    agent.learn(0.5)
    assert agent.failures()["critic"] == [1]


def test_parameters_are_counted_by_hand() -> None:
    agent = sac_agent(sac_config(actor_width=8, actor_depth=1, critic_width=8, critic_depth=1))
    actor = 8 * (OBS + TASKS) + 8 + 2 * ACTION * (8 + 1)
    critics = 2 * (8 * (OBS + ACTION + TASKS) + 8 + (8 + 1))
    assert agent.parameter_count == actor + critics + TASKS
    assert f"{actor + critics + TASKS:,} trained" in agent.facts()["networks"]


def test_a_log_line_between_two_solves_is_the_same_after_a_resume() -> None:
    config = sac_config("every", options={"refresh_every": 50})
    agent, other = sac_agent(config), sac_agent(config)
    _live(agent, 12)
    agent.metrics()  # the line of the checkpoint's own vector step
    other.load_state(copy.deepcopy(agent.state()))
    found = []
    for one in (agent, other):
        _live(one, 2, seed=5)
        found.append(one.metrics())
    assert found[0].scalars["grad/critic_cos_min"] != 0.0
    np.testing.assert_equal(found[1], found[0])


def test_what_acts_waits_for_the_statistics_of_observations_after_a_resume_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = sac_config(observation_norm="warmup", sac={"act_on_snapshot": True})
    first, agent = sac_agent(config), sac_agent(config)
    _live(first, 8)  # the warm-up, without the action that fits
    stream, norm = agent._side_stream, agent.update.observation_norm
    assert stream is not None
    assert norm is not None
    order: list[str] = []
    for owner, name in ((stream, "mark"), (norm, "fit"), (agent, "_explore")):
        own = getattr(owner, name)

        def noted(*arguments: Any, own: Any = own, name: str = name) -> Any:
            order.append(name)
            return own(*arguments)

        monkeypatch.setattr(owner, name, noted)
    agent.load_state(copy.deepcopy(first.state()))
    agent.act(np.zeros((TASKS, OBS), np.float32))
    assert order == ["mark", "fit", "mark", "_explore"]


@pytest.mark.parametrize("scaling", ["none", "ema", "shrink", "return"])
def test_advice_names_no_scaling_that_is_in_use(scaling: str) -> None:
    bounds = sac_agent(sac_config(replay={"reward_scaling": scaling})).bounds()
    for name in ("critic_loss", "actor_loss"):
        assert ("reward_scaling=return" in bounds[name].advice) == (scaling != "return")
        assert "reward_scaling=ema" not in bounds[name].advice
