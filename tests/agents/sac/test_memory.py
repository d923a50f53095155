"""What an update really allocates, next to what is promised."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mtrl.errors import UserError
from tests.helpers.agents import sac_agent, sac_config


def test_gradients_that_do_not_fit_are_refused_with_the_facts_before_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mtrl.device.resources.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"gradients of 3 tasks need .* GiB on cpu.*critic_width"):
        sac_agent(sac_config("cagrad")).facts()
    sac_agent(sac_config("mean")).facts()  # keeps no per-task gradients


def test_stated_per_task_gradients_are_what_an_update_keeps() -> None:
    agent = sac_agent(sac_config("cagrad"), tasks=30)
    networks = (agent.update.actor, agent.update.critic)
    parameters = sum(network.flat.vector.numel() for network in networks)
    assert agent.jacobian_bytes == 4 * 30 * parameters


MT50 = """
import resource, torch
from mtrl.agents.base import TaskSpec
from mtrl.agents.sac.agent import SACAgent
from mtrl.config.schema import Config, NetworkConfig

torch.set_num_threads(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
config = Config(network=NetworkConfig(actor_width=2048, critic_width=2048), method="cagrad")
names = tuple(f"task {number}" for number in range(50))
agent = SACAgent(config, TaskSpec(names, 10_000, 39, 4), torch.device("cpu"))
for _ in range(10):
    agent.replay.add(torch.rand(50, 10_000, 39), torch.rand(50, 10_000, 4), torch.rand(50, 10_000),
                     torch.rand(50, 10_000, 39), torch.zeros(50, 10_000))
agent.update_from_replay()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, sum(agent.memory().values()))
"""


@pytest.mark.slow
def test_mt50_at_width_2048_takes_the_memory_that_the_start_screen_states() -> None:
    done = subprocess.run([sys.executable, "-c", MT50], capture_output=True, text=True, check=True)
    taken, stated = map(int, done.stdout.split())
    # Beside what is stated: activations and the staging of this test's large additions to the replay.
    assert stated <= taken <= 1.35 * stated
