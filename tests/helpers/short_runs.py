"""A run of seconds on two tasks, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtrl import Config
from mtrl.config.schema import EnvConfig, EvalConfig, NetworkConfig, ReplayConfig, SacConfig, TrainConfig

TASKS = ("reach-v3", "drawer-close-v3")
COUNTING: dict[str, Any] = {
    "suite": "tests.helpers.counting_env:CountingSuite",
    "tasks": ("task-1", "task-2"),
}
"""Changes that put the counting simulation in the place of Meta-World, which takes seconds to start."""


def config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "tasks": TASKS,
        "steps": 60,
        "device": "cpu",
        "env": EnvConfig(max_episode_steps=20, num_workers=1),
        "replay": ReplayConfig(capacity_per_task=40),
        "network": NetworkConfig(actor_width=16, critic_width=16, actor_depth=2, critic_depth=2),
        "sac": SacConfig(batch_per_task=8),
        # No curves: runs by the scripts draw them, and tests of the sink read them.
        "train": TrainConfig(
            warmup_steps=15, log_interval=10, checkpoint_interval=25, num_threads=1, sinks=()
        ),
        "eval": EvalConfig(interval=30, episodes_per_task=1, final_episodes_per_task=2),
    }
    return Config(**(values | changes))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "wall_s" and not key.startswith("time/")}
