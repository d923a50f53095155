"""PPO with every built-in network and with an ordinary module: both networks learn, and a state goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mtrl.networks.base import NETWORKS
from mtrl.runs.plain_tree import copied
from tests.helpers.agents import OBS, TASKS
from tests.helpers.checkpoints import assert_same
from tests.helpers.plain_ppo import Story, fill, ppo_agent, ppo_config


class Plain(nn.Module):
    def __init__(self, inputs: int, outputs: int, num_tasks: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


QUICK = {"mlp"}
NAMES = [*sorted(NETWORKS), f"{__name__}:Plain"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def test_a_network_learns_and_goes_on_from_a_state(name: str) -> None:
    settings: dict[str, Any] = {"methods": {"critic_method": "fairgrad", "actor_method": "pcgrad"}}
    settings |= {"ppo": {"value_norm": "pop_art"}, "architecture": name}
    agent = ppo_agent(ppo_config(**settings))
    networks = (agent.update.actor, agent.update.critic)
    before = [network.flat.vector.detach().clone() for network in networks]
    story = Story()
    fill(agent, story)
    while agent.behind():
        agent.learn(0.0)
    for network, vector in zip(networks, before, strict=True):
        assert torch.isfinite(network.flat.vector).all()
        assert not torch.equal(network.flat.vector, vector)
    other = ppo_agent(ppo_config(**settings, seed=4))
    other.load_state({part: copied(tree) for part, tree in agent.state().items()})
    obs = np.zeros((TASKS, OBS), np.float32)
    assert other.policy(1)(obs).tobytes() == agent.policy(1)(obs).tobytes()
    assert_same(other.state(), agent.state())
    assert agent.gaussian_policy().architecture == name
