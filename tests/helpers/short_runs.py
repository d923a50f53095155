"""Runs of seconds on two tasks: their configuration, their files, and how two of them are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mtrl import Config
from mtrl.agents.base import Agent
from mtrl.config.presets import save_config
from mtrl.config.schema import EnvConfig, EvalConfig, NetworkConfig, ReplayConfig, SacConfig, TrainConfig
from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint
from mtrl.training.build import build_agent, suite_of
from tests.helpers.checkpoints import assert_same

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


def counting(**changes: Any) -> Config:
    return config(**{**COUNTING, **changes})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluated(run: Path) -> list[tuple[int, bool]]:
    """The vector step of each evaluation, and whether it counted as the final one."""
    return [(line["vector_step"], line["final"]) for line in lines(run / "evaluations.jsonl")]


def without_time(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "wall_s" and not key.startswith("time/")}


def assert_same_run(left: Path, right: Path, *, evaluations: bool = True, counters: bool = True) -> None:
    """The newest checkpoints and every logged number, times apart, are equal.

    Without `counters` the number of restarted workers may differ, as long as no episode of training was lost.
    """
    states = [load_checkpoint(run) for run in (left, right)]
    for _, state in states:
        if not counters:
            del state["loop"]["restarts"]
    assert_same(*states)
    for name in ("metrics.jsonl", "evaluations.jsonl")[: 2 if evaluations else 1]:
        pairs = zip(lines(left / name), lines(right / name), strict=True)
        for one, other in pairs:
            rest = [without_time(line) for line in (one, other)]
            if not counters:
                for line in rest:
                    line.pop("env/restarts", None)
            assert rest[0] == rest[1]


def random_run(path: Path, step: int = 30, size: float = 0.3, **changes: Any) -> tuple[Config, Agent]:
    """Write what an export reads, without training: config.yaml and a policy with parameters of one size."""
    settings = counting(**changes)
    agent = build_agent(settings, suite_of(settings), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    policy = {
        name: torch.randn(value.shape, generator=generator).mul_(size)
        for name, value in agent.state()["policy"].items()
    }
    agent.load_policy(policy)
    path.mkdir(parents=True)
    save_config(settings, path / "config.yaml")
    save_checkpoint(path, step, {"policy": policy}, keep=1)
    return settings, agent
