"""A log of two tasks, what it was told, and readers of what it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mtrl.runs.jsonl import JsonLines, drop_after
from mtrl.runs.log import SINKS, Evaluation, Log, RunInfo, Sink, Stamp

TASKS = ("reach-v3", "push-v3")
CONFIG: dict[str, Any] = {
    "tasks": TASKS,
    "seed": 3,
    "sac": {"gamma": 0.99, "max_grad_norm": None},
    "method": "cagrad",
    "method_options": {"c": 0.4},
    "steps": 60,
}
VERSIONS = {"torch": "2.13.0", "mujoco": "3.3.0"}
RESULT = Evaluation(
    TASKS,
    np.array([[True, True, True, False], [False, False, False, True]]),
    np.array([[True, False, False, False], [False, False, False, True]]),
    np.array([[100.0, 200.0, 300.0, 400.0], [1.0, 2.0, 3.0, 4.0]]),
)
NUM_ENVS = 6  # three copies of two tasks


def open_log(run_dir: Path, resume_step: int | None = None, *sinks: Sink) -> Log:
    resumed_at = None
    if resume_step is not None:
        history = drop_after(run_dir, resume_step, CONFIG["steps"])
        resumed_at = Stamp(resume_step, NUM_ENVS * resume_step, history.wall_s)
    info = RunInfo(run_dir, TASKS, CONFIG, VERSIONS, resumed_at)
    return Log(info, JsonLines(), [SINKS["tensorboard"](), *sinks])


def log_steps(log: Log, steps: list[int], offset: float = 0.0) -> None:
    for step in steps:
        value = step + offset
        log.metrics(log.stamp(step, NUM_ENVS), {"train/critic_loss": value}, {"alpha": [value, -value]})


def events(run_dir: Path) -> Any:
    accumulator = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def curve(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(run_dir).Scalars(tag)]
