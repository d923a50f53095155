"""The agent around the update: refusals, acting, what it stores, logs, and where it can be interrupted."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
import torch

from mtrl.agents.ppo import agent as agent_module
from mtrl.agents.ppo.agent import PPOAgent
from mtrl.config.schema import Config, EnvConfig
from mtrl.errors import UserError
from mtrl.runs.plain_tree import copied
from tests.helpers.agents import ACTION, OBS, TASKS
from tests.helpers.checkpoints import assert_same
from tests.helpers.plain_ppo import COPIES, EPOCHS, MINIBATCHES, STEPS, Story, fill, ppo_agent, ppo_config

FITTED = STEPS + 1  # pieces of work: the first rollout, which gives the statistics of observations alone
UPDATED = FITTED + STEPS + EPOCHS * MINIBATCHES
FULL: dict[str, Any] = {
    "ppo": {"value_norm": "pop_art", "entropy": 0.01, "final_lr_fraction": 0.1},
    "methods": {"critic_method": "fairgrad", "actor_method": "pcgrad"},
    "observation_norm": "warmup",
}


@pytest.fixture
def one_minibatch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "SLICE_SECONDS", -1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ppo": {"minibatches": 5}}, r"must divide the rows of a task, .* = 32; found 5\."),
        (
            {"ppo": {"rollout_steps": 1, "minibatches": 1}, "copies": 1},
            "advantages of one row, which are 0 then",
        ),
        ({"critic_loss": "categorical"}, "needs network.critic_loss=squared; found categorical"),
        ({"critic_dtype": "bfloat16"}, "needs network.critic_dtype=float32; found bfloat16"),
        ({"ppo": {"target_kl": 0.01, "actor_lr": 0.1}}, r"between 1e-05 and 0.01; found ppo.actor_lr = 0\.1"),
        ({"method": "inverse_alpha"}, "reads temperatures, which agent ppo does not have"),
        ({"method": "famo"}, "famo needs losses of at least 0, and the actor's may be negative"),
    ],
)
def test_settings_that_ppo_cannot_train_with_are_refused(changes: dict[str, Any], message: str) -> None:
    PPOAgent.check(ppo_config(), TASKS)
    with pytest.raises(UserError, match=message):
        PPOAgent.check(ppo_config(**changes), TASKS)


def _fit_and_fill(agent: PPOAgent, story: Story) -> None:
    fill(agent, story)
    agent.learn(0.0)
    fill(agent, story)


def _advance(agent: PPOAgent, story: Story, pieces: int) -> None:
    """Vector steps and minibatches alike count as a piece, in the order of a run."""
    for _ in range(pieces):
        if agent.behind():
            agent.learn(0.25)
        else:
            story.follow(agent)


@pytest.mark.usefixtures("one_minibatch_at_a_time")
@pytest.mark.parametrize(
    "stopped",
    [
        pytest.param(STEPS, id="before the statistics"),
        pytest.param(FITTED + 5, id="in a rollout"),
        pytest.param(FITTED + STEPS + 3, id="in an epoch"),
        pytest.param(FITTED + STEPS + MINIBATCHES, id="between epochs"),
        pytest.param(5, id="in the first rollout", marks=pytest.mark.slow),
        pytest.param(FITTED + STEPS, id="before the update", marks=pytest.mark.slow),
        pytest.param(UPDATED, id="after it", marks=pytest.mark.slow),
        pytest.param(UPDATED + STEPS + 1, id="in the second update", marks=pytest.mark.slow),
    ],
)
def test_interrupted_anywhere_it_goes_on_bit_for_bit(stopped: int) -> None:
    total = 2 * UPDATED - FITTED + 3
    undisturbed, story = ppo_agent(ppo_config(**FULL)), Story()
    _advance(undisturbed, story, total)
    first, story = ppo_agent(ppo_config(**FULL)), Story()
    _advance(first, story, stopped)
    saved = {name: copied(part) for name, part in first.state().items()}
    _advance(first, Story(), 7)  # what the first process does after the checkpoint is lost
    second = ppo_agent(ppo_config(**FULL, seed=9))  # nothing comes from its own seed
    second.load_state(saved)
    assert_same(second.state(), saved)
    _advance(second, story, total - stopped)
    assert_same(second.state(), undisturbed.state())
    assert second.updates == 2 * EPOCHS * MINIBATCHES


@pytest.mark.parametrize("method", ["fairgrad", "upgrad", "nash_mtl"])
def test_a_log_line_after_a_resume_and_before_a_step_is_that_of_the_undisturbed_run(method: str) -> None:
    first, second = (ppo_agent(ppo_config(method, ppo={"final_lr_fraction": 0.1})) for _ in range(2))
    fill(first, Story())
    while first.behind():
        first.learn(0.5)
    second.load_state({name: copied(part) for name, part in first.state().items()})
    found, expected = second.metrics(), first.metrics()
    assert found.scalars == expected.scalars and "grad/critic_cos_min" in found.scalars
    np.testing.assert_equal(found.per_task, expected.per_task)


@pytest.mark.usefixtures("one_minibatch_at_a_time")
def test_pauses_of_learning_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    agents = [ppo_agent(ppo_config(**FULL)) for _ in range(2)]
    for agent, seconds in zip(agents, (-1.0, 1e9), strict=True):
        monkeypatch.setattr(agent_module, "SLICE_SECONDS", seconds)
        _fit_and_fill(agent, Story())
        calls = 0
        while agent.behind():
            agent.learn(0.5)
            calls += 1
        assert calls == (EPOCHS * MINIBATCHES if seconds < 0 else 1)
    assert_same(*(agent.state() for agent in agents))


def test_a_rollout_keeps_the_successors_of_ended_rows_alone() -> None:
    agent = ppo_agent(ppo_config())
    whole, ends = {}, 0
    for number, (each, _) in enumerate(fill(agent, Story())):
        kept = each.terminated | each.truncated | (number == STEPS - 1)
        ends += kept.sum()
        if kept.any():
            whole[str(number)] = torch.from_numpy(each.next_obs).view(TASKS, COPIES, OBS)
    saved = agent.state()["rollout"]["successors"]
    assert sum(rows.numel() for rows in saved.values()) == ends * OBS
    assert ends < TASKS * COPIES * len(whole)
    assert_same({str(step): found for step, found in agent.rollout.successors()}, whole)


def test_stated_memory_of_a_rollout_is_what_it_keeps_if_all_rows_end_episodes() -> None:
    agent, story = ppo_agent(ppo_config()), Story()
    ended = np.ones(TASKS * COPIES, dtype=bool)
    while not agent.behind():
        story.follow(agent, terminated=ended)
    state = agent.state()["rollout"]
    kept = [state["rows"], *state["successors"].values()]
    assert agent.memory()["rollout"] == sum(tensor.nbytes for tensor in kept)


def test_it_learns_nothing_before_the_rollout_is_full() -> None:
    agent, story = ppo_agent(ppo_config()), Story()
    before = agent.update.actor.flat.vector.detach().clone()
    for _ in range(STEPS - 1):
        story.follow(agent)
        assert not agent.behind()
        agent.learn(0.0)
    assert torch.equal(agent.update.actor.flat.vector, before)
    assert not agent.metrics().per_task
    story.follow(agent)
    assert agent.behind()


@pytest.mark.parametrize("squash", ["tanh", "clip"])
def test_actions_are_squashed_samples_and_evaluation_takes_the_mean(squash: str) -> None:
    agent = ppo_agent(ppo_config(ppo={"squash": squash}))
    with torch.no_grad():  # means beyond the bounds
        agent.update.actor.flat.named()["head.bias"][0, :ACTION] = torch.tensor([2.0, -2.0, 0.3, 0.0])
    obs = np.zeros((TASKS * COPIES, OBS), np.float32)
    action = agent.act(obs)
    raw = agent._raw.flatten(0, 1).numpy()
    expected = np.tanh(raw) if squash == "tanh" else np.clip(raw, -1, 1)
    np.testing.assert_allclose(action, expected, rtol=0, atol=1e-6)
    assert np.abs(raw - raw.mean(0)).mean() > 0.3
    mean = np.array([2.0, -2.0, 0.3, 0.0])
    wanted = np.tanh(mean) if squash == "tanh" else np.clip(mean, -1, 1)
    found = agent.policy(1)(np.zeros((TASKS, OBS), np.float32))
    np.testing.assert_allclose(found, np.tile(wanted, (TASKS, 1)), rtol=0, atol=0.05)


def test_the_first_rollout_gives_the_statistics_of_observations_and_nothing_else() -> None:
    agent, story = ppo_agent(ppo_config(observation_norm="warmup")), Story()
    networks = (agent.update.actor, agent.update.critic)
    fresh = [network.flat.vector.detach().clone() for network in networks]
    steps = fill(agent, story)
    agent.learn(0.0)
    norm = agent.update.observation_norm
    assert norm is not None
    seen = np.concatenate([moved.obs for moved, _ in steps])
    np.testing.assert_allclose(norm.mean.numpy(), seen.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(norm.deviation.numpy(), seen.std(0), rtol=1e-5)
    for network, vector in zip(networks, fresh, strict=True):
        assert torch.equal(network.flat.vector, vector)
    assert not agent.behind()
    before = norm.mean.clone()
    fill(agent, story)
    while agent.behind():
        agent.learn(0.0)
    assert torch.equal(norm.mean, before)
    assert agent.updates == EPOCHS * MINIBATCHES


@pytest.mark.parametrize("network", ["brc", "simba"])
def test_a_network_whose_first_policy_depends_on_the_units_of_observations_learns(network: str) -> None:
    """Its policy on standardised observations has nothing in common with that on raw ones."""
    agent, story = ppo_agent(ppo_config(architecture=network, observation_norm="warmup")), Story()
    for _ in range(2):
        while not agent.behind():
            story.obs = 0.6 + 0.1 * story.obs  # metres
            story.follow(agent)
        while agent.behind():
            agent.learn(0.0)
    assert agent.updates and not agent.failures()


def test_log_lines_have_the_numbers_of_each_task_and_only_after_updates() -> None:
    agent, story = ppo_agent(ppo_config(**FULL)), Story()
    _fit_and_fill(agent, story)
    agent.learn(0.0)
    metrics = agent.metrics()
    names = (
        "critic_loss", "actor_loss", "entropy", "std", "kl", "clip_fraction", "explained_variance",
        "return_mean", "return_deviation", "weight", "actor_weight", "critic_grad_norm", "actor_grad_norm",
    )  # fmt: skip
    assert {name: metrics.per_task[name].shape for name in names} == dict.fromkeys(names, (TASKS,))
    assert metrics.scalars["train/actor_lr"] == pytest.approx(3e-4)
    # A Gaussian of deviation 1 in each of four actions has an entropy of 2 log(2 pi e) nats.
    assert metrics.per_task["std"] == pytest.approx(np.ones(TASKS), abs=0.05)
    assert metrics.per_task["entropy"] == pytest.approx(np.full(TASKS, 2 * np.log(2 * np.pi * np.e)), abs=0.2)
    assert (metrics.per_task["kl"] >= 0).all()
    assert not agent.metrics().per_task  # nothing since
    assert set(agent.bounds()) <= set(metrics.per_task)


def test_parameters_are_those_of_toppo() -> None:
    """717K parameters at MT50: three layers of 400 twice, eight outputs and one value; PopArt adds 100."""
    config = Config.from_preset("toppo_mt50", {"env": {"envs_per_task": 1}})
    agent = ppo_agent(config, tasks=50)
    inputs = OBS + 50
    layers = (inputs * 400 + 400) + 2 * (400 * 400 + 400)
    assert agent.parameter_count == 2 * layers + 401 * 2 * ACTION + 401 * 1 + 2 * 50
    published = agent.parameter_count + 2 * (39 - OBS) * 400 - 2 * 50
    assert published == 717_209


def test_a_rollout_that_does_not_fit_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtrl.device.resources.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"the rollout's rows need .* Lower ppo.rollout_steps"):
        ppo_agent(ppo_config()).facts()


def test_start_screen_says_how_much_an_update_takes_in() -> None:
    config = ppo_config(copies=4)
    assert config.env == EnvConfig(envs_per_task=4)
    facts = ppo_agent(config).facts()
    assert facts["rollout"] == "64 rows per task in 16 vector steps, 3 x 4 minibatches of 16 rows per task"
    assert "critic mlp 2x16" in facts["networks"]


@pytest.mark.parametrize(
    ("steps", "norm", "told"),
    [
        (5 * STEPS, "none", None),
        (5 * STEPS + 9, "none", "5 in 89 vector steps; the last 9 steps are not learnt from"),
        (STEPS - 1, "none", "0 in 15 vector steps: nothing is learnt"),
        (STEPS - 1, "warmup", "0 in 15 vector steps: nothing is learnt"),
        (STEPS, "none", None),
        (STEPS, "warmup", "1 in 16 vector steps: nothing is learnt"),
        (2 * STEPS, "warmup", "2 in 32 vector steps; the first one only standardises observations"),
    ],
)
def test_start_screen_says_which_steps_are_not_learnt_from(
    steps: int, norm: Literal["none", "warmup"], told: str | None
) -> None:
    config = ppo_config()
    network = dataclasses.replace(config.network, observation_norm=norm)
    config = dataclasses.replace(config, steps=steps, network=network)
    assert ppo_agent(config).facts().get("rollouts") == told
