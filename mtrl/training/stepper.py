"""One vector step of training: act, start the environments, update meanwhile, collect, store."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtrl.agents.sac.policy import AgentPolicy
from mtrl.agents.sac.update import Updater
from mtrl.config.schema import Config
from mtrl.envs.engine.results import StepResult
from mtrl.errors import EnvironmentFailure
from mtrl.training.parts import Parts


class Stepper:
    """Moves the parts of a run by one vector step at a time.

    Attributes:
        seconds: spent so far in `act`, `update` and `env_wait`, each without what ran beside the others.
        failure: set when no further step is possible.
    """

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config, self.parts = config, parts
        self.seconds = dict.fromkeys(("act", "update", "env_wait"), 0.0)
        self.failure: EnvironmentFailure | None = None
        self.act = AgentPolicy(parts.agent, parts.envs.envs_per_task, deterministic=False)
        self.update = Updater(parts.agent, parts.replay, config.sac.batch_per_task)

    def begin(self) -> None:
        """Start the first episodes, unless a restored run is in the middle of some."""
        if self.parts.obs is None:
            self.parts.obs, _ = self.parts.envs.reset()

    def vector_step(self, step: int) -> None:
        """Move every environment by one env step and, after warm-up, update meanwhile."""
        config, parts = self.config, self.parts
        envs, obs = parts.envs, parts.obs
        assert obs is not None
        # Transitions that a restart has cost may leave less than a batch at the end of warm-up.
        warm = step >= config.train.warmup_steps and parts.replay.size >= config.sac.batch_per_task
        if warm:
            with Timer(self.seconds, "update"):
                self._wait_for_update()
            with Timer(self.seconds, "act"):
                action = self.act(obs)
        else:
            action = parts.exploration.uniform(-1.0, 1.0, (envs.num_envs, envs.action_dim)).astype(np.float32)
        envs.step_async(action)
        if warm:
            parts.agent.anneal(step / config.steps)
            burst = config.train.warmup_updates if step == config.train.warmup_steps else 0
            with Timer(self.seconds, "update"):
                for _ in range(config.train.updates_per_step + burst):
                    self.update()
        with Timer(self.seconds, "env_wait"):
            next_obs, reward, terminated, truncated, infos = self._step_wait()
        ended, lost = terminated | truncated, infos["restarted"]
        successor = infos["final_obs"] if ended.any() else next_obs
        transition = (obs, action, reward, successor, terminated, lost)
        parts.replay.add(*(self._by_task(x) for x in transition))
        parts.rollout.add(reward, infos["success"], ended & ~lost)
        parts.rollout.drop(lost)
        parts.obs = next_obs

    def _step_wait(self) -> StepResult:
        """Collect the step; if it was the last one possible, what the workers that are left made of it."""
        try:
            return self.parts.envs.step_wait()
        except EnvironmentFailure as failure:
            if failure.step_result is None:
                raise
            self.failure = failure
            result: StepResult = failure.step_result
            return result

    def _by_task(self, values: NDArray[Any]) -> torch.Tensor:
        """[T*E, ...] -> [T, E, ...]."""
        envs = self.parts.envs
        return torch.from_numpy(values).view(envs.num_tasks, envs.envs_per_task, *values.shape[1:])

    def _wait_for_update(self) -> None:
        # On CUDA an update runs beside the environments, and what they did not hide of it is waited for here.
        if self.parts.agent.device.type == "cuda":
            torch.cuda.current_stream().synchronize()


class Timer:
    """Adds the time spent inside its block to one entry of a dict."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._began
