"""Textbook SAC where tasks differ in temperature, the actor waits, or all tasks share one temperature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.agents.sac.replay import Batch
from mtrl.agents.sac.update import SACUpdate
from tests.helpers.agents import ACTION, OBS, TASKS, WIDTH, sac_config, sac_update
from tests.helpers.plain_sac import PlainSAC, load_plain, plain_outputs, plain_sample

SAMPLES, UPDATES = 5, 8


@pytest.mark.parametrize("temperature", ["per_task", "shared"])
@pytest.mark.parametrize("actor_every", [1, 3])
def test_updates_equal_the_textbooks_with_other_temperatures_and_a_waiting_actor(
    temperature: str, actor_every: int
) -> None:
    ours = sac_update(sac_config("mean", sac={"temperature": temperature}))
    plain = PlainSAC(TASKS, OBS, ACTION, WIDTH, 2, lr=3e-4, eps=1e-5)
    start = torch.linspace(-1.5, 1.0, TASKS) if temperature == "per_task" else torch.tensor([0.7])
    plain.log_alpha = torch.nn.Parameter(start.clone())
    plain.alpha_optimizer = torch.optim.Adam([plain.log_alpha], lr=3e-4)
    with torch.no_grad():
        ours.log_alpha.copy_(start)
    load_plain(plain.actor, ours.actor.flat.named(), 0)
    for stack in range(2):
        load_plain(plain.critics[stack], ours.critic.flat.named(), stack)  # type: ignore[arg-type]
        load_plain(plain.targets[stack], ours.critic.flat.named(), stack)  # type: ignore[arg-type]

    generator = torch.Generator().manual_seed(3)
    for number in range(UPDATES):
        batch = _batch(generator)
        noise = torch.randn(1, 2, TASKS, SAMPLES, ACTION, generator=generator)
        actor_too = number % actor_every == 0
        ours.step([batch], noise, actor_too=actor_too)
        values = batch.obs, batch.action, batch.reward, batch.next_obs
        plain.update(*values, (noise[0, 0], noise[0, 1]), actor_too=actor_too)
        # After each update, because the last one might hide a target network that waits with the actor.
        _assert_equal(ours.target, plain.targets, ours, batch)
    _assert_equal(ours.critic.flat.vector.detach(), plain.critics, ours, batch)
    outputs = ours.actor_network.apply(ours.actor.flat.named(), batch.obs)[0].detach()
    action = outputs.chunk(2, dim=-1)[0].tanh()
    expected = plain_sample(plain.actor, batch.obs, torch.zeros_like(action))[0].detach()
    torch.testing.assert_close(action, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.log_alpha.detach(), plain.log_alpha.detach(), rtol=1e-4, atol=1e-6)
    # Adam steps alike on a sum and on a mean, so look at the gradients that it has averaged.
    (moments,) = ours.temperature_optimizer.state.values()
    (expected_moments,) = plain.alpha_optimizer.state.values()
    torch.testing.assert_close(moments["exp_avg"], expected_moments["exp_avg"], rtol=1e-4, atol=1e-5)


def _batch(generator: torch.Generator) -> Batch:
    def normal(*shape: int) -> Tensor:
        return torch.randn(TASKS, SAMPLES, *shape, generator=generator)

    alive = torch.ones(TASKS, SAMPLES)
    return Batch(normal(OBS), normal(ACTION).tanh(), 3 * normal(), normal(OBS), alive)


def _assert_equal(vector: Tensor, models: torch.nn.ModuleList, ours: SACUpdate, batch: Batch) -> None:
    named = ours.critic.flat.named(vector)
    inputs = torch.cat((batch.obs, batch.action), dim=-1)
    values = ours.critic_network.apply(named, inputs)
    expected = plain_outputs(models, batch.obs, batch.action).detach()
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-5)
