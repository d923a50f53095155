"""Each network of the field as the networks of both agents, with the options that change how they compute."""

from __future__ import annotations

import pytest
import torch

from mtrl.agents.sac.replay import Batch
from mtrl.networks.base import NETWORKS
from tests.helpers.agents import ACTION, OBS, TASKS, sac_config, sac_update
from tests.helpers.plain_ppo import Story, fill, ppo_agent, ppo_config

SAMPLES = 5


@pytest.mark.parametrize(
    ("network", "method"),
    [*((network, "cagrad") for network in NETWORKS), ("mlp", "mean"), ("moore", "mean")],
)
def test_ppo_moves_a_network_whose_values_are_normalised(network: str, method: str) -> None:
    agent, story = ppo_agent(ppo_config(method, architecture=network, ppo={"value_norm": "pop_art"})), Story()
    descents = (agent.update.actor, agent.update.critic)
    before = [descent.flat.vector.detach().clone() for descent in descents]
    fill(agent, story)
    while agent.behind():
        agent.learn(0.1)
    assert agent.failures() == {}
    for descent, start in zip(descents, before, strict=True):
        move = descent.flat.vector.detach() - start
        assert move.isfinite().all() and move.norm() > 0


@pytest.mark.parametrize("method", ["cagrad", "fs_mtl"])
@pytest.mark.parametrize("network", NETWORKS)
def test_sac_moves_a_network_whose_critics_compute_in_bfloat16(network: str, method: str) -> None:
    update = sac_update(sac_config(method, architecture=network, critic_dtype="bfloat16"))
    before, generator = update.critic.flat.vector.detach().clone(), torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(TASKS, SAMPLES, *shape, generator=generator)

    batch = Batch(normal(OBS), normal(ACTION).tanh(), normal(), normal(OBS), torch.ones(TASKS, SAMPLES))
    update.step([batch], torch.randn(1, 2, TASKS, SAMPLES, ACTION, generator=generator))
    move = update.critic.flat.vector.detach() - before
    assert move.isfinite().all() and move.norm() > 0
