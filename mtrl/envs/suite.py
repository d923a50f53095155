"""What the engine asks of a suite of tasks, and the registry of suites. Imports no simulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtrl.registry import Registry


class TaskEnv(Protocol):
    """One task in one worker: no time limit, no automatic reset; those are the engine's."""

    def reset(self, goal: int) -> NDArray[Any]:
        """Start an episode with the given variation of the task; return the first observation [O]."""
        ...

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[Any], float, bool, Mapping[str, Any]]:
        """Advance by one env step with an action [A] in [-1, 1]: observation, reward, terminated, info."""
        ...

    def get_state(self) -> Any:
        """Return everything the next numbers depend on, as plain containers and arrays."""
        ...

    def set_state(self, state: Any) -> None:
        """Restore `get_state`, possibly in another process."""
        ...

    def render(self) -> Any:
        """Return a frame [H, W, 3] uint8."""
        ...

    def close(self) -> None:
        """Free what the environment holds."""
        ...


class TaskSuite(Protocol):
    """A list of tasks with one observation and one action shape; pickled to workers, so plain data only."""

    task_names: tuple[str, ...]  # T
    obs_dim: int  # O
    action_dim: int  # A
    info_keys: tuple[str, ...]  # entries of `info` that travel as float32; "success" where the suite has one
    num_goals: int  # variations of each task; evaluation plays them in order

    def versions(self) -> dict[str, str]:
        """Return the versions that decide what the simulation computes."""
        ...

    def make_env(self, task: str, *, seed: np.random.SeedSequence, render_mode: str | None) -> TaskEnv:
        """Return an environment of one task; called in a worker, which imports the simulation here."""
        ...


SUITES = Registry(
    "suite",
    {"metaworld": "mtrl.envs.metaworld:MetaWorldSuite", "gymnasium": "mtrl.envs.gymnasium:GymnasiumSuite"},
)
