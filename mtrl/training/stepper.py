"""One vector step of training: act, start the environments, learn meanwhile, collect, observe."""

from __future__ import annotations

import time

from mtrl.agents.base import Transitions
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

    def begin(self) -> None:
        """Start the first episodes, unless a restored run is in the middle of some."""
        if self.parts.obs is None:
            self.parts.obs, _ = self.parts.envs.reset()

    def vector_step(self, step: int) -> None:
        """Move every environment by one env step and let the agent learn meanwhile."""
        parts = self.parts
        envs, agent, obs = parts.envs, parts.agent, parts.obs
        assert obs is not None
        with Timer(self.seconds, "update"):
            agent.wait()  # what the environments did not hide of the learning started a step ago
        with Timer(self.seconds, "act"):
            action = agent.act(obs)
        envs.step_async(action)
        with Timer(self.seconds, "update"):
            agent.learn(step / self.config.steps)
        with Timer(self.seconds, "env_wait"):
            next_obs, reward, terminated, truncated, infos = self._step_wait()
        if infos["restarted"].any():
            parts.restart_steps.append(step + 1)
        ended, lost = terminated | truncated, infos["restarted"]
        successor = infos["final_obs"] if ended.any() else next_obs
        agent.observe(Transitions(obs, action, reward, successor, terminated, truncated, lost))
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


class Timer:
    """Adds the time spent inside its block to one entry of a dict."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] += time.perf_counter() - self._began
