"""Textbook PPO on plain torch modules, and small agents to compare with it. An oracle: no mtrl code inside.

Two networks, two Adams, two bounds on gradient norms, densities from torch.distributions, one joint loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Normal

from mtrl.agents.base import Transitions
from mtrl.agents.ppo.agent import PPOAgent
from mtrl.config.schema import Config, EnvConfig, NetworkConfig, PpoConfig
from tests.helpers.agents import ACTION, OBS, TASKS, WIDTH, spec
from tests.helpers.plain_sac import one_hot_inputs, plain_mlp

CPU = torch.device("cpu")
COPIES, STEPS, EPOCHS, MINIBATCHES = 2, 16, 3, 4
BATCH = COPIES * STEPS // MINIBATCHES


def ppo_config(
    method: str = "mean",
    *,
    ppo: Mapping[str, Any] | None = None,
    copies: int = COPIES,
    methods: Mapping[str, Any] | None = None,
    seed: int = 0,
    **network: Any,
) -> Config:
    """Configuration of networks of two layers; keyword arguments left over are `network`'s."""
    sizes = {"actor_width": WIDTH, "critic_width": WIDTH, "actor_depth": 2, "critic_depth": 2}
    lengths = {"rollout_steps": STEPS, "epochs": EPOCHS, "minibatches": MINIBATCHES}
    return Config(
        agent="ppo",
        seed=seed,
        method=method,
        **(methods or {}),
        env=EnvConfig(envs_per_task=copies),
        network=NetworkConfig(**(sizes | network)),
        ppo=PpoConfig(**(lengths | dict(ppo or {}))),
    )


def ppo_agent(config: Config, *, tasks: int = TASKS, device: torch.device = CPU) -> PPOAgent:
    return PPOAgent(config, spec(tasks, config.env.envs_per_task), device)


class Story:
    """Transitions drawn from a seed: where an agent is led does not depend on its actions."""

    def __init__(self, tasks: int = TASKS, copies: int = COPIES, *, ends: bool = True) -> None:
        self.rng, self.rows, self.ends = np.random.default_rng(0), tasks * copies, ends
        self.obs = self._obs()

    def _obs(self) -> NDArray[np.float32]:
        return self.rng.normal(size=(self.rows, OBS)).astype(np.float32)

    def follow(self, agent: PPOAgent, **changes: Any) -> Transitions:
        """Let the agent act and observe once; return what it observed."""
        action = agent.act(self.obs)
        ended = self.rng.random((2, self.rows)) < (0.1 if self.ends else 0.0)
        terminated, truncated = ended[0], ended[1] & ~ended[0]
        successor = self._obs()
        reward = self.rng.normal(size=self.rows).astype(np.float32)
        lost = np.zeros(self.rows, bool)
        parts = Transitions(self.obs, action, reward, successor, terminated, truncated, lost)
        parts = parts._replace(**changes)
        agent.observe(parts)
        self.obs = np.where((parts.terminated | parts.truncated)[:, None], self._obs(), successor)
        return parts


def fill(agent: PPOAgent, story: Story) -> list[tuple[Transitions, Tensor]]:
    """Let the agent fill a rollout; return its vector steps and the raw actions [T, E, A]."""
    steps = []
    while not agent.behind():
        transitions = story.follow(agent)
        steps.append((transitions, agent._raw.clone()))
    return steps


class PlainPPO:
    """PPO for one-hot inputs: `learn` takes the steps of one rollout and the rows of each minibatch."""

    def __init__(self, tasks: int, settings: PpoConfig) -> None:
        self.tasks, self.settings = tasks, settings
        self.actor = plain_mlp(OBS + tasks, 2 * ACTION, WIDTH, 2)
        self.critic = plain_mlp(OBS + tasks, 1, WIDTH, 2)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=lr, eps=settings.adam_eps)
            for network, lr in ((self.actor, settings.actor_lr), (self.critic, settings.critic_lr))
        ]

    def distribution(self, obs: Tensor) -> Normal:
        """Policy at observations [T, B, O]."""
        outputs = self.actor(one_hot_inputs(obs)).view(*obs.shape[:2], -1)
        mean, log_std = outputs.chunk(2, dim=-1)
        return Normal(mean, log_std.clamp(-20.0, 2.0).exp())

    def value(self, obs: Tensor) -> Tensor:
        """Values [T, B]."""
        result: Tensor = self.critic(one_hot_inputs(obs)).view(obs.shape[:2])
        return result

    def learn(self, steps: list[tuple[Transitions, Tensor]], minibatches: list[Tensor]) -> None:
        """Each minibatch has the rows [T, B] of a task; row n * E + e is copy e in vector step n."""
        by_task = [
            [torch.from_numpy(np.asarray(part)).to(raw.dtype).view(self.tasks, -1, *np.shape(part)[1:])
             for part in (moved.obs, moved.reward, moved.next_obs, moved.terminated, moved.truncated)]
            for moved, raw in steps
        ]  # fmt: skip
        copies = by_task[0][0].shape[1]
        with torch.no_grad():
            values = [self.value(obs) for obs, *_ in by_task]
            after = [self.value(next_obs) for _, _, next_obs, *_ in by_task]
        advantage = [torch.zeros_like(values[0]) for _ in steps]
        for task in range(self.tasks):
            for copy in range(copies):
                running = 0.0
                for number in reversed(range(len(steps))):
                    _, reward, _, terminated, truncated = (part[task, copy] for part in by_task[number])
                    bootstrap = (
                        self.settings.gamma * (1 - float(terminated)) * float(after[number][task, copy])
                    )
                    error = float(reward) + bootstrap - float(values[number][task, copy])
                    goes_on = (1 - float(terminated)) * (1 - float(truncated))
                    running = error + self.settings.gamma * self.settings.gae_lambda * goes_on * running
                    advantage[number][task, copy] = running
        obs, raw = (torch.cat(parts, dim=1) for parts in
                    ([own[0] for own in by_task], [raw for _, raw in steps]))  # fmt: skip
        gain, value = torch.cat(advantage, dim=1), torch.cat(values, dim=1)
        with torch.no_grad():
            before = self.distribution(obs).log_prob(raw).sum(-1)
        for rows in minibatches:
            pick = (torch.arange(self.tasks).unsqueeze(1), rows)
            self._step(obs[pick], raw[pick], before[pick], gain[pick], (gain + value)[pick])

    def _step(self, obs: Tensor, raw: Tensor, before: Tensor, gain: Tensor, returns: Tensor) -> None:
        settings = self.settings
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        now = self.distribution(obs)
        ratio = torch.exp(now.log_prob(raw).sum(-1) - before)
        low, high = 1 - settings.clip, 1 + settings.clip
        surrogate = torch.min(gain * ratio, gain * torch.clamp(ratio, low, high)).mean()
        losses = (
            -surrogate - settings.entropy * now.entropy().sum(-1).mean(),
            settings.value_coefficient * nn.functional.mse_loss(self.value(obs), returns) / 2,
        )
        for network, optimizer, loss in zip((self.actor, self.critic), self.optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            if settings.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)
            optimizer.step()
