"""The updates that `benchmark.py update` times: our agents' and Stable-Baselines3's, on random data."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtrl.agents.base import TaskSpec, Transitions
from mtrl.agents.ppo.agent import PPOAgent
from mtrl.agents.sac.agent import SACAgent
from mtrl.agents.sac.replay import Replay
from mtrl.config.presets import build_config, load_preset
from mtrl.config.schema import Config, EnvConfig, NetworkConfig, PpoConfig, ReplayConfig, SacConfig
from mtrl.envs import ACTION_SIZE, OBS_SIZE
from mtrl.networks.make import Role, make_network, network_arguments
from mtrl.training.resolve import resolve
from mtrl_benchmarks import report

_STORED = 1000  # transitions per task to sample from
_MINIBATCHES = 2  # of a rollout of PPO


@dataclass(frozen=True)
class Problem:
    """Shapes of an update: T tasks, hidden layers of `width` and `depth`, B transitions or rows per task."""

    tasks: int
    width: int
    depth: int
    batch_per_task: int
    device: torch.device
    architecture: str = "mlp"
    agent: str = "sac"

    @property
    def network(self) -> NetworkConfig:
        """Architecture of the agent."""
        return NetworkConfig(
            architecture=self.architecture,
            actor_width=self.width,
            actor_depth=self.depth,
            critic_width=self.width,
            critic_depth=self.depth,
        )

    @property
    def parameters(self) -> int:
        """Parameters of an actor and two critics of SAC, or one of PPO."""
        names = tuple(f"task {number}" for number in range(self.tasks))
        stack, actions = (2, ACTION_SIZE) if self.agent == "sac" else (1, 0)
        sizes: dict[Role, dict[str, int]] = {
            "actor": {"stack": 1, "inputs": OBS_SIZE, "outputs": 2 * ACTION_SIZE},
            "critic": {"stack": stack, "inputs": OBS_SIZE + actions, "outputs": 1, "actions": actions},
        }
        made: list[Any] = [
            make_network(self.architecture, network_arguments(self.network, role, **of, task_names=names))
            for role, of in sizes.items()
        ]
        return sum(network.layout().size for network in made)

    def mlp_of_this_size(self) -> Problem:
        """Return the problem of an mlp of this depth whose number of parameters is closest to this one's."""
        widths = range(1, 20_000)
        candidates = [replace(self, architecture="mlp", width=width) for width in widths]
        above = bisect.bisect_left(candidates, self.parameters, key=lambda problem: problem.parameters)
        return min(
            candidates[max(above - 1, 0) : above + 1], key=lambda p: abs(p.parameters - self.parameters)
        )

    @property
    def sac(self) -> SacConfig:
        """Hyper-parameters of SAC."""
        return SacConfig(batch_per_task=self.batch_per_task)

    def config(self, method: str) -> Config:
        """Configuration of the agent with a method."""
        ppo = PpoConfig(rollout_steps=_MINIBATCHES * self.batch_per_task, minibatches=_MINIBATCHES)
        return Config(
            agent=self.agent,
            network=self.network,
            sac=self.sac,
            ppo=ppo,
            method=method,
            replay=ReplayConfig(capacity_per_task=_STORED),
        )

    def replay(self) -> Replay:
        """Return a buffer with random transitions."""
        replay = Replay(
            num_tasks=self.tasks,
            capacity_per_task=_STORED,
            envs_per_task=_STORED,
            obs_dim=OBS_SIZE,
            action_dim=ACTION_SIZE,
            device=self.device,
            seed=0,
        )
        fill(replay)
        return replay


def fill(replay: Replay) -> None:
    """Fill a buffer that takes all of its transitions in one step with random ones."""
    generator = torch.Generator().manual_seed(0)

    def normal(*last: int) -> torch.Tensor:
        return torch.randn(replay.num_tasks, replay.capacity, *last, generator=generator)

    running = torch.zeros(replay.num_tasks, replay.capacity)
    action = normal(replay.action_dim).tanh()
    replay.add(normal(replay.obs_dim), action, normal(), normal(replay.obs_dim), running)


def of_preset(name: str, method: str, architecture: str | None = None) -> Config:
    """Return a preset's configuration with another method of both networks; "preset" keeps its own.

    `architecture` replaces the preset's networks, at its widths.
    """
    layer: dict[str, Any] = {}
    if method != "preset":
        layer = {f"{network}_method": method for network in ("critic", "actor")}
        layer |= {f"{key}_options": {} for key in layer}
    if architecture is not None:
        layer["network"] = {"architecture": architecture}
    return resolve(build_config(load_preset(name), layer))


def update_of(config: Config, tasks: int, device: torch.device) -> tuple[Callable[[], None], int]:
    """Return what updates an agent on data already gathered, and how many updates a call makes.

    SAC samples from a replay; a call makes the updates from one step of a delayed actor to the next. A call
    of PPO takes a step on a minibatch; what is done once for each rollout is left out.
    """
    if config.agent == "ppo":
        return _ppo(config, tasks, device).update_from_rollout, 1
    agent = _sac(config, tasks, device)

    def updates() -> None:
        for _ in range(config.sac.actor_every):
            agent.update_from_replay()

    return updates, config.sac.actor_every


def rows_of_a_step(config: Config) -> int:
    """Return the transitions or rows per task that an update sees."""
    ppo = config.ppo
    rows = ppo.rollout_steps * config.env.envs_per_task // ppo.minibatches
    return rows if config.agent == "ppo" else config.sac.batch_per_task


def _spec(tasks: int, copies: int) -> TaskSpec:
    return TaskSpec(tuple(f"task {number}" for number in range(tasks)), copies, OBS_SIZE, ACTION_SIZE)


def _sac(config: Config, tasks: int, device: torch.device) -> SACAgent:
    quickly_filled = replace(config, replay=replace(config.replay, capacity_per_task=_STORED))
    agent = SACAgent(quickly_filled, _spec(tasks, _STORED), device)
    fill(agent.replay)
    return agent


def _ppo(config: Config, tasks: int, device: torch.device) -> PPOAgent:
    """Return an agent with a full rollout of two minibatches, from which it learns for ever."""
    rows = rows_of_a_step(config)
    steps = _MINIBATCHES * rows
    endless = replace(config.ppo, rollout_steps=steps, minibatches=_MINIBATCHES, epochs=10**9)
    config = replace(config, env=EnvConfig(), ppo=endless)
    agent = PPOAgent(config, _spec(tasks, 1), device)
    random, runs = np.random.default_rng(0), np.zeros(tasks, bool)
    for _ in range(steps):
        obs, after = random.normal(size=(2, tasks, OBS_SIZE)).astype(np.float32)
        reward = random.normal(size=tasks).astype(np.float32)
        agent.observe(Transitions(obs, agent.act(obs), reward, after, runs, runs, runs))
    return agent


def stable_baselines3(problem: Problem) -> Callable[[], None] | None:
    """Return one gradient step of SB3's SAC on the same networks and batch; None where it is missing.

    Its networks see the one-hot task identity as observations; it has one temperature for all tasks and no
    gradient clipping.
    """
    try:
        import gymnasium
        from stable_baselines3 import SAC
    except ImportError:
        report.note("left out stable-baselines3: pip install stable-baselines3")
        return None
    inputs = OBS_SIZE + problem.tasks

    class Empty(gymnasium.Env[np.ndarray, np.ndarray]):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (inputs,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), np.float32)

        def reset(self, **_: object) -> tuple[np.ndarray, dict[str, object]]:
            return np.zeros(inputs, np.float32), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
            return np.zeros(inputs, np.float32), 0.0, False, False, {}

    batch = problem.tasks * problem.batch_per_task
    model = SAC(
        "MlpPolicy",
        Empty(),
        batch_size=batch,
        buffer_size=max(batch, 10_000),
        policy_kwargs={"net_arch": [problem.width] * problem.depth},
        device=problem.device,
        seed=0,
    )
    # What `train` needs of `learn`, without its steps in an environment.
    model._setup_learn(total_timesteps=1)
    random = np.random.default_rng(0)
    buffer = model.replay_buffer
    assert buffer is not None
    buffer.observations[:] = random.normal(size=buffer.observations.shape)
    buffer.next_observations[:] = random.normal(size=buffer.next_observations.shape)
    buffer.actions[:] = np.tanh(random.normal(size=buffer.actions.shape))
    buffer.rewards[:] = random.normal(size=buffer.rewards.shape)
    buffer.full = True
    return lambda: model.train(gradient_steps=1, batch_size=batch)


def floor_ms(problem: Problem) -> float:
    """Milliseconds that the matrix products of an update take at this device's speed on a large product."""
    size = 4096 if problem.device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=problem.device) for _ in range(2))
    best = min(_product_seconds(left, right) for _ in range(10))
    return 1e3 * _flops(problem) * best / (2.0 * size**3)


def _product_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    torch.mm(left, right)
    if left.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _flops(problem: Problem) -> float:
    """Floating-point operations of an update's matrix products (the one-hot is a lookup).

    Actor: forward for the target, forward and twice as much backward for its step. Critics: forward for the
    target; forward and backward for their step; forward and backward to the actions for the actor's step.
    """
    hidden = (problem.depth - 1) * problem.width**2
    actor = problem.width * (OBS_SIZE + 2 * ACTION_SIZE) + hidden
    critics = 2 * (problem.width * (OBS_SIZE + ACTION_SIZE + 1) + hidden)
    return 2.0 * problem.tasks * problem.batch_per_task * (4 * actor + 6 * critics)


def profile(steps: Sequence[Callable[[], None]], path: Path) -> None:
    """Write a Chrome trace of three calls of each step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        for step in steps:
            for _ in range(3):
                step()
    path.parent.mkdir(parents=True, exist_ok=True)
    recorded.export_chrome_trace(str(path))
    report.note(f"trace in {path}: open it in a trace viewer (Perfetto, chrome://tracing)")
