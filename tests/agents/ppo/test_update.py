"""The update against textbook PPO, loops of plain gradients, and what must hold in its first minibatch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from mtrl.agents.ppo.agent import PPOAgent
from mtrl.agents.ppo.rollout import Minibatch
from mtrl.agents.ppo.update import adapted
from mtrl.combiners import COMBINERS
from mtrl.gradients.per_task import LossFunction, TaskGradients
from tests.helpers.agents import OBS, TASKS
from tests.helpers.loss_methods import sac_options
from tests.helpers.plain_ppo import BATCH, EPOCHS, MINIBATCHES, PlainPPO, Story, fill, ppo_agent, ppo_config
from tests.helpers.plain_sac import load_plain

TEXTBOOK = {"squash": "clip", "advantages": "minibatch", "entropy": 0.01, "gamma": 0.9, "actor_lr": 3e-3}


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learnt_rows(agent: PPOAgent) -> list[Tensor]:
    """Let the agent learn from its rollout; return the rows [K, T, B] of each step."""
    rows: list[Tensor] = []
    step = agent.update.step

    def noted(batches: Any) -> None:
        rows.append(agent._rows.clone())
        step(batches)

    agent.update.step = noted  # type: ignore[method-assign]
    while agent.behind():
        agent.learn(0.0)
    agent.update.step = step  # type: ignore[method-assign]
    return rows


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("tasks", [1, TASKS])
def test_two_rollouts_equal_the_textbooks(tasks: int) -> None:
    config = ppo_config(ppo=TEXTBOOK)
    ours, plain = ppo_agent(config, tasks=tasks), PlainPPO(tasks, config.ppo)
    networks = ((plain.actor, ours.update.actor), (plain.critic, ours.update.critic))
    for theirs, own in networks:
        load_plain(theirs, own.flat.named(), 0)
    start = ours.update.actor.flat.vector.detach().clone()
    story = Story(tasks)
    for _ in range(2):
        steps = fill(ours, story)
        rows = learnt_rows(ours)
        assert len(rows) == EPOCHS * MINIBATCHES
        plain.learn(steps, [own[0] for own in rows])
    assert ours.updates == 24
    for theirs, own in networks:
        expected = nn.Sequential(*(type(layer)(*_sizes(layer)) for layer in theirs))
        load_plain(expected, own.flat.named(), 0)
        for one, other in zip(expected.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert float((ours.update.actor.flat.vector.detach() - start).abs().max()) > 1e-2


def _sizes(layer: nn.Module) -> tuple[int, ...]:
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else ()


def _minibatch(dtype: torch.dtype = torch.float64) -> Minibatch:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(TASKS, BATCH, *shape, generator=generator, dtype=dtype)

    weight = torch.ones(TASKS, BATCH, dtype=dtype)
    weight[1, 3] = 0.0
    # Log-probabilities of about the policy's own size, so that some ratios are clipped and others are not.
    return Minibatch(normal(OBS), normal(4), normal() - 5.5, normal(), normal(), weight)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("chosen", [None, [2, 0]])
def test_gradients_of_each_task_equal_a_loop_of_plain_ones(chosen: list[int] | None) -> None:
    agent = ppo_agent(ppo_config(ppo={"entropy": 0.02, "value_norm": "pop_art"}, critic_layer_norm=True))
    update, batch = agent.update, _minibatch()
    tasks = None if chosen is None else torch.tensor(chosen)
    for network in (update.actor, update.critic):
        with torch.no_grad():
            network.flat.vector.add_(0.1 * torch.randn_like(network.flat.vector))
    pairs: list[tuple[Any, LossFunction, Any]] = [
        (update.actor, partial(update.actor_loss, [batch]), _plain_actor_loss),
        (update.critic, partial(update.critic_loss, [batch]), _plain_critic_loss),
    ]
    for network, ours, plain in pairs:
        gradients = TaskGradients(network.flat, ours, TASKS, {})
        jacobian = gradients(tasks=tasks)
        for row, task in enumerate(chosen or range(TASKS)):
            vector = network.flat.vector.detach().clone().requires_grad_()
            loss = plain(update, network.flat.named(vector), batch, task)
            (expected,) = torch.autograd.grad(loss, vector)
            torch.testing.assert_close(jacobian[row], expected[: network.flat.num_shared], rtol=0, atol=1e-12)
            if chosen is None and len(gradients.head_gradient):  # PopArt's gain and shift of this task
                own = gradients.head_gradient.view(2, TASKS)[:, task]
                torch.testing.assert_close(
                    own, expected[network.flat.num_shared :].view(2, TASKS)[:, task], rtol=0, atol=1e-12
                )
            assert float(gradients.losses[task]) == pytest.approx(float(loss.detach()), abs=1e-12)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_beyond_all_numbers_leaves_the_gradients_finite(advantage: float) -> None:
    update = ppo_agent(ppo_config()).update
    batch = _minibatch(torch.float32)
    batch.log_prob[0, 0], batch.advantage[0, 0] = -500.0, advantage
    gradients = TaskGradients(update.actor.flat, partial(update.actor_loss, [batch]), TASKS, {})
    assert gradients().isfinite().all() and gradients.losses.isfinite().all()
    if advantage > 0:  # the clip leaves the row out
        kept = batch._replace(advantage=batch.advantage.clone(), log_prob=batch.log_prob.clone())
        kept.advantage[0, 0], kept.log_prob[0, 0] = 0.0, -5.5
        without = TaskGradients(update.actor.flat, partial(update.actor_loss, [kept]), TASKS, {})
        torch.testing.assert_close(gradients(), without())


def _plain_mlp(named: dict[str, Tensor], obs: Tensor, task: int, *, layer_norm: bool) -> Tensor:
    x = obs
    for layer in range(2):
        x = nn.functional.linear(x, named[f"{layer}.weight"][0], named[f"{layer}.bias"][0])
        if layer == 0:
            x = x + named["0.task"][0, task]
        if layer_norm:
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = x.relu()
    return nn.functional.linear(x, named["head.weight"][0], named["head.bias"][0])


def _plain_actor_loss(update: Any, named: dict[str, Tensor], batch: Minibatch, task: int) -> Tensor:
    mean, log_std = _plain_mlp(named, batch.obs[task], task, layer_norm=False).chunk(2, dim=-1)
    normal = torch.distributions.Normal(mean, log_std.exp())
    ratio = (normal.log_prob(batch.raw[task]).sum(-1) - batch.log_prob[task]).exp()
    gain = batch.advantage[task]
    each = -torch.min(gain * ratio, gain * ratio.clamp(0.8, 1.2)) - 0.02 * normal.entropy().sum(-1)
    result: Tensor = each[batch.weight[task] > 0].mean()
    return result


def _plain_critic_loss(update: Any, named: dict[str, Tensor], batch: Minibatch, task: int) -> Tensor:
    value = _plain_mlp(named, batch.obs[task], task, layer_norm=True).squeeze(-1)
    value = named["pop_art.gain"][task, 0] * value + named["pop_art.shift"][task, 0]
    return (0.5 * (value - batch.target[task]).square())[batch.weight[task] > 0].mean()


@pytest.mark.parametrize("value_norm", ["none", "pop_art"])
def test_in_the_first_minibatch_the_policy_is_that_of_the_rollout(value_norm: str) -> None:
    agent = ppo_agent(ppo_config(ppo={"value_norm": value_norm}, observation_norm="warmup"))
    story = Story()
    fill(agent, story)
    agent.learn(0.0)  # takes the statistics of observations
    for _ in range(2):
        fill(agent, story)
        seen: list[Any] = []
        loss = agent.update.actor_loss

        def noted(*arguments: Any, loss: Any = loss, seen: list[Any] = seen) -> Any:
            seen.append(loss(*arguments))
            return seen[-1]

        agent.update.actor_loss = noted  # type: ignore[assignment,method-assign]
        agent.update_from_rollout()
        (losses, aux) = seen[0]
        assert float(aux.kl.abs().max()) < 1e-6
        assert float(aux.clip_fraction.max()) == 0.0
        rows = agent.rollout.gather(agent._rows[0])
        # With a ratio of 1 the surrogate is minus the mean advantage.
        torch.testing.assert_close(losses, -rows.advantage.mean(1), rtol=0, atol=1e-5)
        agent.update.actor_loss = loss  # type: ignore[method-assign]
        while agent.behind():
            agent.learn(0.0)
        assert float(agent.metrics().per_task["kl"].max()) > 1e-6


def test_each_epoch_has_each_row_once_and_each_minibatch_as_many_of_every_task() -> None:
    agent = ppo_agent(ppo_config())
    fill(agent, Story())
    rows = learnt_rows(agent)
    assert all(own.shape == (1, TASKS, BATCH) for own in rows)
    epochs = [torch.cat(rows[first : first + MINIBATCHES], dim=-1)[0] for first in range(0, 12, MINIBATCHES)]
    everything = torch.arange(BATCH * MINIBATCHES).expand(TASKS, -1)
    assert all(torch.equal(epoch.sort(dim=1).values, everything) for epoch in epochs)
    orders = {tuple(order.tolist()) for epoch in epochs for order in epoch}
    assert len(orders) == EPOCHS * TASKS  # another one for each task and epoch


def test_a_method_that_wants_independent_batches_gets_a_permutation_for_each() -> None:
    agent = ppo_agent(ppo_config("modo", methods={"method_options": {"batches": 3}}))
    fill(agent, Story())
    rows = learnt_rows(agent)
    assert rows[0].shape == (3, TASKS, BATCH)
    assert not torch.equal(rows[0][0], rows[0][1])


def test_a_lost_row_changes_nothing_whatever_it_holds() -> None:
    vectors = []
    for number in (0.0, 1e6):
        agent, story = ppo_agent(ppo_config(ppo={"value_norm": "pop_art"})), Story(ends=False)
        lost = np.zeros(story.rows, bool)
        lost[3] = True
        for step in range(16):
            changes: dict[str, Any] = {}
            if step == 7:
                reward = np.random.default_rng(1).normal(size=story.rows).astype(np.float32)
                reward[3] += number
                changes = {"lost": lost, "reward": reward}
            story.follow(agent, **changes)
        while agent.behind():
            agent.learn(0.0)
        vectors.append(torch.cat([agent.update.actor.flat.vector, agent.update.critic.flat.vector]))
    assert torch.equal(*vectors)


def test_the_rest_of_a_rollout_does_not_depend_on_a_change_after_an_end() -> None:
    """Advantages before an end of an episode are blind to what comes after it, as returns are."""
    found = []
    for number in (0.0, 50.0):
        agent, story = ppo_agent(ppo_config(ppo={"advantages": "none"})), Story(ends=False)
        for step in range(16):
            truncated = np.full(story.rows, step == 9)
            reward = np.full(story.rows, 1.0 + number * (step == 10), np.float32)
            story.follow(agent, truncated=truncated, reward=reward)
        agent.update.assess(agent.rollout, BATCH)
        found.append(agent.rollout.learnt_from[1].clone())
    assert torch.equal(found[0][:, :20], found[1][:, :20])
    assert not torch.equal(found[0][:, 20:22], found[1][:, 20:22])


@pytest.mark.parametrize(
    "method",
    ["famo", "cagrad_fast"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(COMBINERS.keys() - {"inverse_alpha", "torchjd"})
    ],
)
def test_methods_of_all_kinds_move_both_networks(method: str) -> None:
    options = {"method_options": sac_options(method)}
    agent = ppo_agent(ppo_config(method, methods=options, ppo={"value_norm": "pop_art"}, heads="per_task"))
    networks = (agent.update.actor, agent.update.critic)
    before = [network.flat.vector.detach().clone() for network in networks]
    fill(agent, Story())
    while agent.behind():
        agent.learn(0.0)
    for network, vector in zip(networks, before, strict=True):
        assert torch.isfinite(network.flat.vector).all()
        assert not torch.equal(network.flat.vector, vector)
    assert not agent.failures()


@pytest.mark.usefixtures("double_precision")
def test_weight_decay_acts_on_the_networks_and_not_on_pop_art() -> None:
    """Also where the network has task heads of its own, which do decay."""
    agents = [
        ppo_agent(ppo_config(ppo={"value_norm": "pop_art"}, heads="per_task", weight_decay=decay))
        for decay in (0.0, 0.5)
    ]
    start = [agents[0].update.critic.flat.named(), agents[0].update.actor.flat.named()]
    start = [{name: value.clone() for name, value in named.items()} for named in start]
    moved = []
    for agent in agents:
        agent.update.step([_minibatch()])
        moved.append([agent.update.critic.flat.named(), agent.update.actor.flat.named()])
    for before, plain, decayed in zip(start, *moved, strict=True):
        for name, value in before.items():
            lost = 0.0 if name.startswith("pop_art") else 3e-4 * 0.5
            torch.testing.assert_close(plain[name] - decayed[name], lost * value, rtol=1e-8, atol=1e-15)
    assert {"pop_art.gain", "pop_art.shift", "head.weight"} <= start[0].keys()


def test_toppo_s_methods_are_one_for_each_network() -> None:
    methods = {"critic_method": "fairgrad", "critic_method_options": {"alpha": 1.0}, "actor_method": "pcgrad"}
    agent = ppo_agent(ppo_config(methods=methods))
    assert (agent.update.critic.combiner.name, agent.update.actor.combiner.name) == ("fairgrad", "pcgrad")


def test_step_sizes_and_the_weight_of_the_entropy_move_linearly() -> None:
    settings = {"final_lr_fraction": 0.1, "entropy": 0.005, "final_entropy": 0.0, "critic_lr": 1e-3}
    agent = ppo_agent(ppo_config(ppo=settings))
    for progress, factor in ((0.0, 1.0), (0.5, 0.55), (1.0, 0.1)):
        fill(agent, Story())
        while agent.behind():
            agent.learn(progress)
        lrs = [optimizer.param_groups[0]["lr"] for optimizer in agent.update.optimizers]
        assert lrs == pytest.approx([3e-4 * factor, 1e-3 * factor])
        assert float(agent.update.entropy_weight) == pytest.approx(0.005 * (1 - progress))


@pytest.mark.parametrize(
    ("lr", "divergence", "expected"),
    [
        (3e-4, 0.0201, 2e-4),  # more than twice the target of .01
        (3e-4, 0.02, 3e-4),
        (3e-4, 0.005, 3e-4),
        (3e-4, 0.0049, 4.5e-4),  # less than half of it
        (1.2e-5, 9.0, 1e-5),
        (9e-3, 0.0, 1e-2),
        (3e-4, float("nan"), 3e-4),
    ],
)
def test_a_step_size_follows_the_divergence_by_the_published_rule(
    lr: float, divergence: float, expected: float
) -> None:
    assert adapted(lr, divergence, 0.01) == pytest.approx(expected, rel=1e-12)


def test_the_divergence_is_that_of_torch_distributions_over_all_rows_that_count() -> None:
    agent, story = ppo_agent(ppo_config(ppo={"actor_lr": 0.01})), Story()
    lost = np.zeros(story.rows, bool)
    lost[[0, 3]] = True  # the first copy of the first task, the second copy of the second one
    story.follow(agent, lost=lost)
    fill(agent, story)
    rollout = agent.rollout

    def log_prob() -> Tensor:
        outputs = agent.update.policy_outputs(agent.update.actor.flat.named(), rollout.obs).detach()
        mean, log_std = outputs.chunk(2, dim=-1)
        result: Tensor = Normal(mean, log_std.exp()).log_prob(rollout.raw).sum(-1)
        return result

    before = log_prob()
    for _ in range(5):
        agent.update_from_rollout()
    moved = log_prob() - before
    estimate = moved.exp() - 1 - moved
    counts = torch.ones_like(estimate)
    counts[0, 0] = counts[1, 1] = 0.0
    expected = (estimate * counts).sum(1) / counts.sum(1)
    assert (expected > 1e-4).all()
    torch.testing.assert_close(agent.update.divergence(rollout, BATCH), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("target", "factor"), [(1e-9, 1 / 1.5), (1e9, 1.5)])
def test_the_actor_s_step_size_adapts_between_rollouts_and_survives_a_resume(
    target: float, factor: float
) -> None:
    settings = {"target_kl": target, "final_lr_fraction": 0.1, "critic_lr": 1e-3}
    agent, story = ppo_agent(ppo_config(ppo=settings)), Story()
    for number, progress in enumerate((0.0, 0.5, 1.0)):
        fill(agent, story)
        while agent.behind():
            agent.learn(progress)
        lrs = [optimizer.param_groups[0]["lr"] for optimizer in agent.update.optimizers]
        assert lrs == pytest.approx([3e-4 * factor**number, 1e-3 * (1 - 0.9 * progress)])
    resumed = ppo_agent(ppo_config(ppo=settings))
    resumed.load_state(agent.state())
    assert resumed.update.actor_lr == agent.update.actor_lr == pytest.approx(3e-4 * factor**3)
    state = agent.state()
    del state["agent"]["actor_lr"]  # a checkpoint of a run without the option
    fresh = ppo_agent(ppo_config(ppo=settings))
    fresh.load_state(state)
    assert fresh.update.actor_lr == 3e-4
