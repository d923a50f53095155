"""A suite of one's own, trained from Python: a boat has to reach its goal, and each task has another current.

Run it with `python examples/own_suite.py`; it needs the extra [train] and takes about half a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl import Config, train
from mtrl.envs.suite import StepOutcome, TaskSuite
from mtrl.errors import UserError, unknown_name
from mtrl.training.events import TrainResult

CURRENTS = {"calm": (0.0, 0.0), "east": (0.08, 0.0), "north": (0.0, 0.08), "strong": (-0.1, -0.1)}


class Currents(TaskSuite):
    """One task per current.

    Args:
        speed: how far the boat moves in a step, without current.
    """

    obs_dim, action_dim, info_keys = 4, 2, ("success",)

    def __init__(self, tasks: Sequence[str], *, num_goals: int | None = None, speed: float = 0.25) -> None:
        if unknown := sorted(set(tasks) - CURRENTS.keys()):
            raise UserError(unknown_name("current", unknown[0], CURRENTS))
        self.task_names = tuple(tasks)
        self.num_goals = 20 if num_goals is None else num_goals
        self.speed = speed

    def make_env(self, task: str, goals: Any, **_: Any) -> Boat:
        """Return one environment; it is made in a worker process."""
        return Boat(np.array(CURRENTS[task]), self.speed)


class Boat:
    """The state is the position; the goal is part of the observation."""

    def __init__(self, current: NDArray[np.float64], speed: float) -> None:
        self.current, self.speed = current, speed

    def reset(self, goal: int) -> NDArray[np.float64]:
        """Begin an episode; the number of the goal decides all that is random in it."""
        self.position, self.goal = np.random.default_rng(goal).uniform(-1.0, 1.0, (2, 2))
        return np.concatenate((self.position, self.goal))

    def step(self, action: NDArray[np.float64]) -> StepOutcome:
        """Return observation, reward, terminated, truncated and info, as Gymnasium does."""
        self.position = self.position + self.speed * action + self.current
        distance = float(np.linalg.norm(self.position - self.goal))
        observation = np.concatenate((self.position, self.goal))
        return observation, -distance, False, False, {"success": distance < 0.2}

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of an episode under way."""
        return {"position": self.position, "goal": self.goal}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue the episode that `get_state` described."""
        self.position, self.goal = state["position"], state["goal"]

    def render(self) -> NDArray[np.uint8]:
        """Return a picture, for videos; this world draws none, so `--video` cannot be used with it."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the environment holds."""


def main(steps: int = 600, run_dir: str | None = None) -> TrainResult:
    """Train a small agent on all currents with CAGrad and return the result."""
    settings = {
        "suite": f"{__file__}:Currents",
        "tasks": list(CURRENTS),
        "method": "cagrad",
        "steps": steps,
        "env": {"max_episode_steps": 20, "num_workers": 1},
        "network": {"actor_width": 64, "actor_depth": 2, "critic_width": 64, "critic_depth": 2},
        "sac": {
            "actor_lr": 3e-3,
            "critic_lr": 3e-3,
            "temperature_lr": 1e-2,
            "gamma": 0.9,
            "batch_per_task": 64,
        },
        "replay": {"capacity_per_task": 5000},
        "train": {"warmup_steps": 100, "log_interval": 100, "num_threads": 1, "sinks": []},
        "eval": {"interval": 200, "episodes_per_task": 10, "final_episodes_per_task": 20},
    }
    return train(Config.from_preset("debug", settings), run_dir=run_dir)


if __name__ == "__main__":  # worker processes import this file
    result = main()
    assert result.evaluation is not None
    print(f"{result.evaluation.mean_success:.2f} of the episodes reached their goal; run: {result.path}")
