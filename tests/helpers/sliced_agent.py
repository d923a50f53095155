"""An agent that learns in slices between vector steps, as one does that collects rollouts; it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtrl.agents.base import Bound, Floats, Metrics, Policy, TaskSpec, Transitions

ROLLOUT, SLICES = 6, 4  # vector steps, calls of `learn` after them


class SlicedAgent:
    """Its number depends on the order of everything that it is asked for.

    Attributes:
        record: what happened in this process: "act", or the progress of each slice.
    """

    def __init__(self, config: Any, spec: TaskSpec, device: Any) -> None:
        self.spec, self.record = spec, list[Any]()
        self.collected, self.left, self.number, self.slices = 0, 0, 0.5, 0

    def act(self, obs: Floats) -> Floats:
        assert not self.behind()
        self.record.append("act")
        return np.full((len(obs), self.spec.action_dim), np.float32(self.number))

    def observe(self, transitions: Transitions) -> None:
        self.collected += 1
        if self.collected % ROLLOUT == 0:
            self.left = SLICES

    def behind(self) -> bool:
        return self.left > 0

    def learn(self, progress: float) -> None:
        if not self.left:
            return
        self.record.append(progress)
        self.left -= 1
        self.slices += 1
        self.number = (self.number * 7.3 + progress) % 1

    def wait(self) -> None:
        pass

    def policy(self, envs_per_task: int) -> Policy:
        return lambda obs: np.full((len(obs), self.spec.action_dim), np.float32(self.number))

    def metrics(self) -> Metrics:
        return Metrics({"train/number": self.number, "train/slices": float(self.slices)}, {})

    def failures(self) -> dict[str, list[int]]:
        return {}

    def bounds(self) -> dict[str, Bound]:
        return {}

    def facts(self) -> dict[str, str]:
        return {}

    def state(self) -> dict[str, Any]:
        rest = {"collected": self.collected, "left": self.left, "slices": self.slices}
        return {"policy": self.policy_state(), "rest": rest}

    def policy_state(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_policy(self, part: Mapping[str, Any]) -> None:
        self.number = part["number"]

    def load_state(self, parts: Mapping[str, Any]) -> None:
        self.load_policy(parts["policy"])
        for name, value in parts["rest"].items():
            setattr(self, name, value)
