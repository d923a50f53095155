"""The agent's update against textbook SAC, and what must never happen in it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.agents.sac.agent import MTSAC
from mtrl.agents.sac.batch import Batch
from mtrl.combiners import COMBINERS, make_combiner
from mtrl.combiners._random import draw_tasks
from mtrl.config.schema import NetworkConfig, SacConfig
from mtrl.errors import UserError
from mtrl.networks.mlp import q_values, sample_action
from tests.combiners.oracles import ORACLES
from tests.helpers.loss_methods import sac_options
from tests.helpers.plain_sac import PlainSAC, load_plain, plain_q, plain_sample

TASKS, SAMPLES, OBS, ACTION, WIDTH = 3, 5, 6, 4, 16


def _agent(method: str = "mean", *, sac: SacConfig | None = None, seed: int = 0, **network: Any) -> MTSAC:
    sizes = {"actor_width": WIDTH, "critic_width": WIDTH, "actor_depth": 2, "critic_depth": 2}
    return MTSAC(
        num_tasks=TASKS, obs_dim=OBS, action_dim=ACTION, network=NetworkConfig(**(sizes | network)),
        sac=sac or SacConfig(), method=method, method_options=sac_options(method), device=torch.device("cpu"),
        seed=seed,
    )  # fmt: skip


def _batch(generator: torch.Generator, terminated: float = 0.0) -> Batch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(TASKS, SAMPLES, *shape, generator=generator)

    alive = torch.full((TASKS, SAMPLES), 1.0 - terminated)
    return Batch(normal(OBS), normal(ACTION).tanh(), 3 * normal(), normal(OBS), alive)


def _run(agent: MTSAC, updates: int, seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        agent.update([_batch(generator) for _ in range(agent.num_batches)])


# The plain mean, and a method of each kind: of losses, of the Gramian (with and without a state), of the
# Jacobian (another library's, and one that looks at gradients elsewhere).
@pytest.mark.parametrize("method", ["mean", "slaw", "cagrad", "nash_mtl", "torchjd", "fs_mtl"])
def test_an_update_equals_textbook_sac_with_a_backward_pass_per_task(method: str) -> None:
    agent = _agent(method)
    plain = PlainSAC(TASKS, OBS, ACTION, WIDTH, 2, lr=3e-4, eps=1e-5)
    if method != "mean":  # the joint mean of all losses is the textbook itself
        plain.critic_combiner = make_combiner(method, num_tasks=TASKS)
        plain.actor_combiner = make_combiner(method, num_tasks=TASKS)
    load_plain(plain.actor, agent.actor.flat.named(), 0)
    for stack in range(2):
        load_plain(plain.critics[stack], agent.critic.flat.named(), stack)  # type: ignore[arg-type]
        load_plain(plain.targets[stack], agent.critic.flat.named(), stack)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        batch = _batch(generator)
        noise = torch.randn(1, 2, TASKS, SAMPLES, ACTION, generator=generator)
        agent.update([batch], noise)
        plain.update(batch.obs, batch.action, batch.reward, batch.next_obs, (noise[0, 0], noise[0, 1]))
    obs, action = _batch(generator).obs, _batch(generator).action
    expected = torch.stack([_plain_q(model, obs, action) for model in plain.critics])
    ours = q_values(agent.critic_spec, agent.critic.flat.named(), obs, action)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    targets = torch.stack([_plain_q(model, obs, action) for model in plain.targets])
    ours = q_values(agent.critic_spec, agent.critic.flat.named(agent.target), obs, action)
    torch.testing.assert_close(ours, targets, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(agent.log_alpha.detach(), plain.log_alpha.detach(), rtol=1e-4, atol=1e-6)
    sample = sample_action(agent.actor_spec, agent.actor.flat.named(), obs, torch.zeros_like(action))
    expected_action, expected_log_prob = _plain_policy(plain, obs, torch.zeros_like(action))
    torch.testing.assert_close(sample.action, expected_action, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sample.log_prob, expected_log_prob, rtol=1e-4, atol=1e-4)


def _plain_q(model: Any, obs: Tensor, action: Tensor) -> Tensor:
    return plain_q(model, obs, action).detach()


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
        return agent.critic_losses([changed], noise.unsqueeze(0), alpha)(constant, 0, None)

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
    actor = agent.actor.flat.named()
    action, log_prob = sample_action(agent.actor_spec, actor, batch.next_obs, noise)
    next_q = q_values(agent.critic_spec, agent.critic.flat.named(agent.target), batch.next_obs, action)
    target = batch.reward + 0.99 * (next_q.amin(0) - alpha.unsqueeze(1) * log_prob)
    torch.testing.assert_close(reference, target.square().mean(1))


def test_terminated_transitions_are_not_bootstrapped() -> None:
    agent = _agent()
    batch = _batch(torch.Generator().manual_seed(0), terminated=1.0)
    zero = {k: torch.zeros_like(v) for k, v in agent.critic.flat.named().items()}
    noise = torch.zeros(TASKS, SAMPLES, ACTION)
    losses = agent.critic_losses([batch], noise.unsqueeze(0), agent.alpha)(zero, 0, None)
    torch.testing.assert_close(losses, batch.reward.square().mean(1))


@pytest.mark.parametrize("method", sorted(COMBINERS))
@pytest.mark.parametrize("heads", ["shared", "per_task"])
def test_every_method_trains_and_stays_finite(method: str, heads: str) -> None:
    agent = _agent(method, heads=heads)
    before = agent.actor.flat.vector.detach().clone()
    _run(agent, 5)
    assert torch.isfinite(agent.actor.flat.vector).all()
    assert not torch.equal(agent.actor.flat.vector, before)
    assert not any(bool(flags.any()) for flags in agent.failures().values())
    assert all(torch.isfinite(value).all() for value in agent.metrics().values())


LEARNED = sorted(name for name, row in ORACLES.items() if row.starts_as_mean)


@pytest.mark.parametrize("method", sorted(set(COMBINERS) - {"mean", *LEARNED}))
def test_every_method_differs_from_the_mean_where_tasks_disagree(method: str) -> None:
    """Equal observations without identity, rewards of opposite sign: the critics' gradients conflict."""
    batch = _batch(torch.Generator().manual_seed(0))
    sign = torch.tensor([1.0, -1.0, 1.0]).view(-1, 1)
    same = {name: getattr(batch, name)[:1].expand_as(getattr(batch, name)) for name in ("obs", "action")}
    batch = batch._replace(**same, reward=10 * sign.expand_as(batch.reward))
    critics = []
    for name in (method, "mean"):
        agent = _agent(name, task_identity="none")
        for _ in range(3):
            agent.update([batch] * agent.num_batches)
        critics.append(agent.critic.flat.vector.detach())
    assert not torch.allclose(critics[0], critics[1], atol=1e-5)


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
    with pytest.raises(UserError, match=rf"{method} needs positive losses.*--method.shift minimum"):
        MTSAC(
            num_tasks=TASKS, obs_dim=OBS, action_dim=ACTION, network=NetworkConfig(), sac=SacConfig(),
            method=method, method_options={}, device=torch.device("cpu"), seed=0,
        )  # fmt: skip


@pytest.mark.parametrize("base", ["mean", "nash_mtl", "pcgrad"])
def test_fs_mtl_trains_on_every_kind_of_base(base: str) -> None:
    """`mean` weighs by losses: FS-MTL must hand those of the current step on."""
    agent = MTSAC(
        num_tasks=TASKS, obs_dim=OBS, action_dim=ACTION, network=NetworkConfig(critic_width=WIDTH),
        sac=SacConfig(), method="fs_mtl", method_options={"base": base}, device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    before = agent.critic.flat.vector.detach().clone()
    _run(agent, 2)
    assert not torch.equal(agent.critic.flat.vector, before)
    assert not any(bool(flags.any()) for flags in agent.failures().values())


def test_actor_and_critic_share_no_combiner_state() -> None:
    agent = _agent("nash_mtl")
    assert agent.actor.combiner is not agent.critic.combiner
    _run(agent, 1)
    assert not torch.equal(agent.actor.combiner.last_weights, agent.critic.combiner.last_weights)


@pytest.mark.parametrize("method", sorted(COMBINERS))
@pytest.mark.parametrize("field", ["reward", "obs"])
def test_a_non_finite_task_changes_nothing_and_is_named(method: str, field: str) -> None:
    agent = _agent(method)
    _run(agent, 2)
    agent.metrics()
    before = copy.deepcopy(agent.training_state())
    generator = torch.Generator().manual_seed(0)
    batches = [_batch(generator) for _ in range(agent.num_batches)]
    getattr(batches[0], field)[1, 0] = float("nan")
    agent.update(batches)
    assert agent.failures()["critic"].tolist() == [False, True, False]
    after = agent.training_state()
    for name, value in after["module"].items():
        untouched = not any(part in name for part in ("failures", "totals."))
        # A NaN reward reaches the critic only; the actor's step is then sound and taken.
        if untouched and (field == "obs" or name.startswith(("critic", "target"))):
            torch.testing.assert_close(value, before["module"][name], rtol=0, atol=0, msg=name)
    for key, moments in before["optimizers"][1]["state"][0].items():
        assert torch.equal(after["optimizers"][1]["state"][0][key], moments), key
    # The agent is not poisoned: sound batches go on as if the bad one had not been.
    _run(agent, 1)
    assert torch.isfinite(agent.critic.flat.vector).all()


@pytest.mark.parametrize("method", sorted(COMBINERS))
def test_saved_state_continues_bit_for_bit(method: str) -> None:
    agent = _agent(method, heads="per_task")
    _run(agent, 3, seed=1)
    other = _agent(method, seed=9, heads="per_task")
    other.load_training_state(copy.deepcopy(agent.training_state()))
    _run(agent, 3, seed=2)
    _run(other, 3, seed=2)
    for (name, left), right in zip(agent.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_objective_sampling_touches_nothing_of_the_other_tasks() -> None:
    agent = MTSAC(
        num_tasks=TASKS, obs_dim=OBS, action_dim=ACTION, network=NetworkConfig(heads="per_task"),
        sac=SacConfig(), method="sdmgrad_os", method_options={"sampled": 2},
        device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    drawn = draw_tasks(TASKS, 2, *torch.zeros(2, 1, dtype=torch.int64))
    batch = _batch(torch.Generator().manual_seed(0))
    (other,) = set(range(TASKS)) - set(drawn.tolist())
    batch.obs[other] = math.nan
    batch.reward[other] = math.inf
    before = agent.log_alpha.detach().clone()
    agent.update([batch])
    assert not any(flags.any() for flags in agent.failures().values())
    assert torch.isfinite(agent.critic.flat.vector).all()
    moved = agent.log_alpha.detach() != before
    assert [task for task in range(TASKS) if moved[task]] == sorted(drawn.tolist())
    metrics = agent.metrics()
    assert metrics["critic_loss"][other] == 0.0
    assert metrics["entropy"][drawn].all()


@pytest.mark.parametrize(("hold", "points"), [(0.0, (0.0, 0.5, 1.0)), (0.6, (0.6, 0.8, 1.0))])
def test_step_sizes_fall_geometrically_over_the_run(hold: float, points: tuple[float, ...]) -> None:
    changes = []
    for progress in points:
        agent = _agent(sac=SacConfig(final_lr_fraction=0.2, lr_hold_fraction=hold))
        before = [value.detach().clone() for value in agent.parameters()]
        agent.anneal(progress)
        _run(agent, 1)  # the first step of Adam: its length is the step size times a function of the gradient
        changes.append([value.detach() - old for value, old in zip(agent.parameters(), before, strict=True)])
    for full, half, last in zip(*changes, strict=True):
        assert full.any()
        torch.testing.assert_close(half, 0.2**0.5 * full, rtol=1e-2, atol=2e-6)
        torch.testing.assert_close(last, 0.2 * full, rtol=1e-2, atol=2e-6)


def test_evaluation_uses_the_average_of_the_actors_parameters_and_training_does_not() -> None:
    agent, plain = _agent(sac=SacConfig(actor_average_rate=0.25)), _agent(sac=SacConfig())
    expected = agent.actor.flat.vector.detach().clone()
    obs = torch.randn(TASKS, 2, OBS)
    for _ in range(5):
        _run(agent, 1)
        _run(plain, 1)
        expected = 0.75 * expected + 0.25 * agent.actor.flat.vector.detach()
    assert torch.equal(agent.actor.flat.vector, plain.actor.flat.vector)
    assert torch.equal(agent.act(obs), plain.act(obs))
    assert not torch.equal(agent.act(obs, deterministic=True), plain.act(obs, deterministic=True))
    plain.actor.flat.vector.data.copy_(expected)
    torch.testing.assert_close(agent.act(obs, deterministic=True), plain.act(obs, deterministic=True))


def test_shared_temperature_is_one_number_moved_by_the_mean_over_tasks() -> None:
    agent = _agent(sac=SacConfig(temperature="shared"))
    assert agent.log_alpha.shape == (1,)
    _run(agent, 2)
    assert agent.alpha.shape == (TASKS,)
    assert float(agent.alpha.max() - agent.alpha.min()) == 0.0
    assert float(agent.log_alpha.detach()) != 0.0


def test_acting_is_bounded_random_in_training_and_repeatable_in_evaluation() -> None:
    agent = _agent()
    obs = torch.randn(TASKS, 2, OBS)
    actions = agent.act(obs)
    assert actions.shape == (TASKS, 2, ACTION)
    assert float(actions.abs().max()) <= 1.0
    assert not torch.equal(actions, agent.act(obs))
    state = agent.generator.get_state()
    assert torch.equal(agent.act(obs, deterministic=True), agent.act(obs, deterministic=True))
    assert torch.equal(state, agent.generator.get_state())


@pytest.mark.parametrize("method", ["cagrad", "nash_mtl", "mean"])
def test_a_gramian_formed_in_blocks_gives_the_same_updates(method: str) -> None:
    whole, chunked = _agent(method), _agent(method, sac=SacConfig(jacobian_chunk=40))
    for agent in (whole, chunked):
        _run(agent, 10)
    for expected, found in zip(whole.parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    whole_metrics, metrics = whole.metrics(), chunked.metrics()
    assert metrics.keys() == whole_metrics.keys()
    torch.testing.assert_close(metrics["critic_loss"], whole_metrics["critic_loss"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["fs_mtl", "adatask", "cagrad_fast"])
def test_methods_that_take_the_whole_jacobian_refuse_a_gramian_in_blocks(method: str) -> None:
    with pytest.raises(UserError, match=rf"jacobian_chunk .* {method} takes the whole Jacobian"):
        _agent(method, sac=SacConfig(jacobian_chunk=40))


def test_gradients_that_do_not_fit_are_refused_before_the_first_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mtrl.device.memory.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"gradients of 3 tasks need .* GiB on cpu.*jacobian_chunk"):
        _agent("cagrad")
    _agent("mean")  # keeps no per-task gradients


@pytest.mark.gpu
@pytest.mark.parametrize("method", sorted(name for name in COMBINERS if not ORACLES[name].reads_host))
def test_an_update_on_cuda_never_waits_for_the_host_and_agrees_with_the_cpu(method: str) -> None:
    """Same numbers in: the first update must agree to rounding, and none may synchronise."""
    agents = []
    for device in ("cpu", "cuda"):
        agent = MTSAC(
            num_tasks=TASKS, obs_dim=OBS, action_dim=ACTION, network=NetworkConfig(critic_width=WIDTH),
            sac=SacConfig(), method=method, method_options=sac_options(method), device=torch.device(device),
            seed=0,
        )  # fmt: skip
        agents.append(agent)
    generator = torch.Generator().manual_seed(0)
    batches = [_batch(generator) for _ in range(agents[0].num_batches)]
    noise = torch.randn(len(batches), 2, TASKS, SAMPLES, ACTION, generator=generator)
    agents[0].update(batches, noise)
    on_gpu, noise = [Batch(*(value.cuda() for value in batch)) for batch in batches], noise.cuda()
    agents[1].update(on_gpu, noise)  # warm-up: the first call of a library may wait
    expected = agents[0].critic.flat.vector.detach()
    torch.testing.assert_close(agents[1].critic.flat.vector.detach().cpu(), expected, rtol=1e-3, atol=1e-5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        agents[1].update(on_gpu, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
