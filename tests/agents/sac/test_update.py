"""The agent's update against textbook SAC, and what must never happen in it."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.agents.sac.replay import Batch
from mtrl.agents.sac.update import SACUpdate, Work
from mtrl.combiners import COMBINERS, make_combiner
from mtrl.combiners._random import shuffled
from mtrl.errors import UserError
from mtrl.networks.gaussian import sample_action
from tests.combiners.oracles import ORACLES
from tests.helpers.agents import ACTION, OBS, TASKS, WIDTH, sac_config, sac_update
from tests.helpers.plain_sac import PlainHead, PlainSAC, load_plain, plain_outputs, plain_sample
from tests.helpers.three_tasks import all_methods

SAMPLES = 5


def _agent(method: str = "mean", **settings: Any) -> SACUpdate:
    return sac_update(sac_config(method, **settings))


def _batch(generator: torch.Generator, terminated: float = 0.0) -> Batch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(TASKS, SAMPLES, *shape, generator=generator)

    alive = torch.full((TASKS, SAMPLES), 1.0 - terminated)
    return Batch(normal(OBS), normal(ACTION).tanh(), 3 * normal(), normal(OBS), alive)


def _noise(agent: SACUpdate, generator: torch.Generator) -> Tensor:
    return torch.randn(agent.num_batches, 2, TASKS, SAMPLES, ACTION, generator=generator)


def _run(agent: SACUpdate, updates: int, seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        batches = [_batch(generator) for _ in range(agent.num_batches)]
        agent.step(batches, _noise(agent, generator))


def _q(agent: SACUpdate, parameters: dict[str, Tensor], obs: Tensor, action: Tensor) -> Tensor:
    inputs = torch.cat((obs, action), dim=-1)
    return agent.critic_network.apply(parameters, inputs).squeeze(-1)


def _sample(agent: SACUpdate, obs: Tensor, noise: Tensor) -> Any:
    return sample_action(agent.actor_network.apply(agent.actor.flat.named(), obs)[0], noise)


# The plain mean, and a method of each kind: of losses, of the Gramian (with and without a state), of the
# Jacobian (another library's, and one that looks at gradients elsewhere).
@pytest.mark.parametrize("method", ["mean", "slaw", "cagrad", "nash_mtl", "torchjd", "fs_mtl"])
def test_an_update_equals_textbook_sac_with_a_backward_pass_per_task(method: str) -> None:
    _compare(method, PlainHead())


@pytest.mark.parametrize(
    ("loss", "reduce", "method"),
    [
        ("squared", "mean", "mean"),
        ("huber", "min", "mean"),
        ("huber", "mean", "cagrad"),
        ("categorical", "min", "mean"),
        ("categorical", "mean", "cagrad"),
        ("histogram", "mean", "mean"),
    ],
)
def test_every_loss_of_the_critics_equals_the_textbooks(loss: str, reduce: str, method: str) -> None:
    bins = 11 if loss in ("categorical", "histogram") else 1
    _compare(method, PlainHead(loss, reduce, low=-8.0, high=6.0, bins=bins))


def _compare(method: str, head: PlainHead) -> None:
    """Ten updates of ours and of plain modules, from the same start, on the same batches."""
    sizes = {"value_bins": head.bins, "value_low": head.low, "value_high": head.high} if head.bins > 1 else {}
    agent = _agent(method, critic_loss=head.loss, sac={"q_reduce": head.reduce}, **sizes)
    plain = PlainSAC(TASKS, OBS, ACTION, WIDTH, 2, lr=3e-4, eps=1e-5, head=head)
    if method != "mean":  # the joint mean of all losses is the textbook itself
        plain.critic_combiner = make_combiner(method, num_tasks=TASKS)
        plain.actor_combiner = make_combiner(method, num_tasks=TASKS)
    load_plain(plain.actor, agent.actor.flat.named(), 0)
    for stack in range(2):
        load_plain(plain.critics[stack], agent.critic.flat.named(), stack)  # type: ignore[arg-type]
        load_plain(plain.targets[stack], agent.critic.flat.named(), stack)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        batch = _batch(generator)
        noise = torch.randn(1, 2, TASKS, SAMPLES, ACTION, generator=generator)
        agent.step([batch], noise)
        plain.update(batch.obs, batch.action, batch.reward, batch.next_obs, (noise[0, 0], noise[0, 1]))
    obs, action = _batch(generator).obs, _batch(generator).action
    pairs = (
        (plain.critics, agent.critic.flat.named()),
        (plain.targets, agent.critic.flat.named(agent.target)),
    )
    for models, parameters in pairs:
        expected = plain_outputs(models, obs, action).detach()
        ours = agent.critic_network.apply(parameters, torch.cat((obs, action), dim=-1))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agent.log_alpha.detach(), plain.log_alpha.detach(), rtol=1e-4, atol=1e-6)
    sample = _sample(agent, obs, torch.zeros_like(action))
    expected_action, expected_log_prob = _plain_policy(plain, obs, torch.zeros_like(action))
    torch.testing.assert_close(sample.action, expected_action, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sample.log_prob, expected_log_prob, rtol=1e-4, atol=1e-4)


def _plain_policy(plain: PlainSAC, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    action, log_prob = plain_sample(plain.actor, obs, noise)
    return action.detach(), log_prob.detach()


@pytest.mark.parametrize("method", ["mean", "cagrad"])
def test_target_actions_are_sampled_at_the_next_observations(method: str) -> None:
    """Changing obs must leave the targets alone; changing next_obs, of one task, must move only its own."""
    agent = _agent(method)
    batch = _batch(torch.Generator().manual_seed(0))
    noise, alpha = torch.zeros(TASKS, SAMPLES, ACTION), agent.alpha

    def losses(changed: Batch) -> Tensor:
        # A critic that ignores its inputs turns the loss into a function of the target alone.
        constant = {k: torch.zeros_like(v) for k, v in agent.critic.flat.named().items()}
        return agent.critic_loss([Work(changed, alpha, noise, noise)], constant, 0, None)[0]

    with torch.no_grad():
        agent.actor.flat.vector.mul_(3)
        agent.actor.flat.named()["head.weight"].normal_()
        agent.target.mul_(3)
    reference = losses(batch)
    torch.testing.assert_close(losses(batch._replace(obs=batch.obs + 1.0)), reference)
    moved = batch.next_obs.clone()
    moved[1] += 1.0
    difference = losses(batch._replace(next_obs=moved)) - reference
    assert difference[0] == 0
    assert difference[2] == 0
    assert difference[1] != 0
    # The action in the target is the policy's at the next observation, to the last digit.
    action, log_prob = _sample(agent, batch.next_obs, noise)
    next_q = _q(agent, agent.critic.flat.named(agent.target), batch.next_obs, action)
    target = batch.reward + 0.99 * (next_q.amin(0) - alpha.unsqueeze(1) * log_prob)
    torch.testing.assert_close(reference, target.square().mean(1))


def test_terminated_transitions_are_not_bootstrapped() -> None:
    agent = _agent()
    batch = _batch(torch.Generator().manual_seed(0), terminated=1.0)
    zero = {k: torch.zeros_like(v) for k, v in agent.critic.flat.named().items()}
    noise = torch.zeros(TASKS, SAMPLES, ACTION)
    losses, _ = agent.critic_loss([Work(batch, agent.alpha, noise, noise)], zero, 0, None)
    torch.testing.assert_close(losses, batch.reward.square().mean(1))


# Updates of the other methods are those of their fingerprints, and finite.
@pytest.mark.dear
@all_methods()
@pytest.mark.parametrize("heads", ["shared", pytest.param("per_task", marks=pytest.mark.slow)])
def test_every_method_trains_and_stays_finite(method: str, heads: str) -> None:
    agent = _agent(method, heads=heads)
    before = agent.actor.flat.vector.detach().clone()
    _run(agent, 3)
    assert torch.isfinite(agent.actor.flat.vector).all()
    assert not torch.equal(agent.actor.flat.vector, before)
    assert not _failures(agent)
    assert all(torch.isfinite(value).all() for value in agent.totals.pop_means().values())


def _failures(agent: SACUpdate) -> dict[str, list[int]]:
    networks = {"critic": agent.critic, "actor": agent.actor}
    flagged = {name: descent.failures.nonzero().flatten().tolist() for name, descent in networks.items()}
    return {name: tasks for name, tasks in flagged.items() if tasks}


LEARNED = sorted(name for name, row in ORACLES.items() if row.starts_as_mean)


# The temperatures that inverse_alpha weighs by are still equal after a few updates.
MEAN_AT_FIRST = frozenset({"mean", "inverse_alpha", *LEARNED})
# By default these stay too near the mean for three tasks and five updates.
MARKED = {"capped_mgda": {"cap": 0.6}, "emtl": {"lam": 10.0}}


@all_methods(but=MEAN_AT_FIRST)
def test_every_method_differs_from_the_mean_where_tasks_disagree(method: str) -> None:
    assert not torch.allclose(_critics_in_conflict(method), _critics_in_conflict("mean"), atol=1e-5)


@functools.cache
def _critics_in_conflict(method: str) -> Tensor:
    """Critics after five updates on equal observations without identity and rewards of opposite sign."""
    batch = _batch(torch.Generator().manual_seed(0))
    sign = torch.tensor([1.0, -1.0, 1.0]).view(-1, 1)
    same = {name: getattr(batch, name)[:1].expand_as(getattr(batch, name)) for name in ("obs", "action")}
    batch = batch._replace(**same, reward=10 * sign.expand_as(batch.reward))
    agent = _agent(method, options=MARKED.get(method), task_identity="none")
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        agent.step([batch] * agent.num_batches, _noise(agent, generator))
    return agent.critic.flat.vector.detach()


@pytest.mark.parametrize("method", LEARNED)
def test_learned_weights_leave_the_mean_within_some_updates(method: str) -> None:
    agent = _agent(method)
    _run(agent, 20)
    for network in (agent.actor, agent.critic):
        weights = network.combiner.last_weights
        assert weights.max() > 1.01 * weights.min()


@pytest.mark.parametrize("method", sorted(name for name, cls in COMBINERS.items() if cls.positive_losses))
def test_methods_for_positive_losses_are_refused_unless_told_how_to_shift(method: str) -> None:
    """The actor's loss has no certain sign: the message names the flag."""
    with pytest.raises(UserError, match=rf"{method} needs losses of at least 0.*--method.shift minimum"):
        _agent(method, options={"shift": "none"})


@pytest.mark.parametrize("method", sorted(name for name, cls in COMBINERS.items() if cls.positive_losses))
def test_critics_take_such_methods_on_their_raw_losses_beside_a_mean_actor(method: str) -> None:
    agent = _agent(method, options={"shift": "none"}, per_network={"actor_method": "mean"})
    _run(agent, 3)
    assert not _failures(agent)
    assert agent.actor.combiner.name == "mean"
    assert agent.critic.combiner.shift == "none"


def test_each_network_may_have_a_method_of_its_own() -> None:
    """The actor's side is that of an agent with its method for both, as long as the critics are frozen."""
    own = {"actor_method": "nash_mtl", "actor_method_options": {"max_norm": 0.5}}
    mixed = _agent("cagrad", per_network=own, sac={"critic_lr": 1e-30})
    alone = _agent("nash_mtl", options={"max_norm": 0.5}, sac={"critic_lr": 1e-30})
    for agent in (mixed, alone):
        _run(agent, 5)
    torch.testing.assert_close(mixed.actor.flat.vector, alone.actor.flat.vector)
    assert mixed.critic.combiner.name == "cagrad"


@pytest.mark.parametrize("base", ["mean", "nash_mtl", "pcgrad"])
def test_fs_mtl_trains_on_every_kind_of_base(base: str) -> None:
    """`mean` weighs by losses: FS-MTL must hand those of the current step on."""
    agent = _agent("fs_mtl", options={"base": base})
    before = agent.critic.flat.vector.detach().clone()
    _run(agent, 2)
    assert not torch.equal(agent.critic.flat.vector, before)
    assert not _failures(agent)


def test_actor_and_critic_share_no_combiner_state() -> None:
    agent = _agent("nash_mtl")
    assert agent.actor.combiner is not agent.critic.combiner
    _run(agent, 1)
    assert not torch.equal(agent.actor.combiner.last_weights, agent.critic.combiner.last_weights)


@all_methods("m_config", "sdmgrad_os")
@pytest.mark.parametrize("field", ["obs", pytest.param("reward", marks=pytest.mark.slow)])
def test_a_task_with_non_finite_numbers_is_named_and_no_other(method: str, field: str) -> None:
    agent = _agent(method)
    _run(agent, 2)
    generator = torch.Generator().manual_seed(0)
    batches = [_batch(generator) for _ in range(agent.num_batches)]
    getattr(batches[0], field)[1, 0] = float("nan")
    agent.step(batches, _noise(agent, generator))
    assert _failures(agent).get("critic", [1]) == [1]  # a method may not have looked at the task
    assert _failures(agent) or method in ("cagrad_fast", "m_config", "sdmgrad_os")


def test_objective_sampling_touches_nothing_of_the_other_tasks() -> None:
    agent = _agent("sdmgrad_os", options={"sampled": 2}, heads="per_task")
    for network in (agent.critic, agent.actor):
        network.combiner.seed(7)  # one stream: the same tasks in both
    stream = agent.critic.combiner.stream.clone()
    drawn = shuffled(torch.arange(TASKS).unsqueeze(0), torch.zeros_like(stream), stream)[0, :2]
    batch = _batch(torch.Generator().manual_seed(0))
    (other,) = set(range(TASKS)) - set(drawn.tolist())
    batch.obs[other] = math.nan
    batch.reward[other] = math.inf
    before = agent.log_alpha.detach().clone()
    agent.step([batch], _noise(agent, torch.Generator()))
    assert not _failures(agent)
    assert torch.isfinite(agent.critic.flat.vector).all()
    moved = agent.log_alpha.detach() != before
    assert [task for task in range(TASKS) if moved[task]] == sorted(drawn.tolist())
    metrics = agent.totals.pop_means()
    assert metrics["critic_loss"].isnan().tolist() == [task == other for task in range(TASKS)]
    assert metrics["log_prob"][drawn].isfinite().all()


@pytest.mark.parametrize(("hold", "points"), [(0.0, (0.0, 0.5, 1.0)), (0.6, (0.6, 0.8, 1.0))])
def test_step_sizes_fall_geometrically_over_the_run(hold: float, points: tuple[float, ...]) -> None:
    changes = []
    for progress in points:
        agent = _agent(sac={"final_lr_fraction": 0.2, "lr_hold_fraction": hold})
        before = [value.detach().clone() for value in agent.parameters()]
        agent.anneal(progress)
        _run(agent, 1)  # Adam's first step: the learning rate times a function of the gradient
        changes.append([value.detach() - old for value, old in zip(agent.parameters(), before, strict=True)])
    for full, half, last in zip(*changes, strict=True):
        assert full.any()
        torch.testing.assert_close(half, 0.2**0.5 * full, rtol=1e-2, atol=2e-6)
        torch.testing.assert_close(last, 0.2 * full, rtol=1e-2, atol=2e-6)


def test_evaluation_uses_the_weighted_mean_of_the_actors_parameters_and_training_does_not() -> None:
    """The weight of each step's parameters is 1, .75, .75^2, ... newest first; the initial ones have none."""
    agent, plain = _agent(sac={"actor_average_rate": 0.25}), _agent()
    obs, seen = torch.randn(TASKS, 2, OBS), []
    for _ in range(5):
        _run(agent, 1)
        _run(plain, 1)
        seen.append(agent.actor.flat.vector.detach().clone())
    weights = 0.75 ** torch.arange(4.0, -1.0, -1.0)
    expected = (weights / weights.sum()) @ torch.stack(seen)
    assert torch.equal(agent.actor.flat.vector, plain.actor.flat.vector)
    noise = torch.randn(TASKS, 2, ACTION)
    assert torch.equal(agent.act(obs, noise), plain.act(obs, noise))
    assert not torch.equal(agent.mode(obs), plain.mode(obs))
    plain.actor.flat.vector.data.copy_(expected)
    torch.testing.assert_close(agent.mode(obs), plain.mode(obs))


def test_shared_temperature_is_one_number_moved_by_the_mean_over_tasks() -> None:
    agent = _agent(sac={"temperature": "shared"})
    assert agent.log_alpha.shape == (1,)
    _run(agent, 2)
    assert agent.alpha.shape == (TASKS,)
    assert float(agent.alpha.max() - agent.alpha.min()) == 0.0
    assert float(agent.log_alpha.detach()) != 0.0


@pytest.mark.gpu
@pytest.mark.parametrize("method", sorted(name for name in COMBINERS if not ORACLES[name].reads_host))
def test_an_update_on_cuda_never_waits_for_the_host_and_agrees_with_the_cpu(method: str) -> None:
    """Same numbers in: the first update must agree to rounding, and none may synchronise."""
    agents = []
    for device in ("cpu", "cuda"):
        agent = sac_update(sac_config(method), device=torch.device(device))
        agents.append(agent)
    generator = torch.Generator().manual_seed(0)
    batches = [_batch(generator) for _ in range(agents[0].num_batches)]
    noise = torch.randn(len(batches), 2, TASKS, SAMPLES, ACTION, generator=generator)
    agents[0].step(batches, noise)
    on_gpu, noise = [Batch(*[value.cuda() for value in batch[:5]]) for batch in batches], noise.cuda()
    agents[1].step(on_gpu, noise)  # warm-up: the first call of a library may wait
    expected = agents[0].critic.flat.vector.detach()
    torch.testing.assert_close(agents[1].critic.flat.vector.detach().cpu(), expected, rtol=1e-3, atol=1e-5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        agents[1].step(on_gpu, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
