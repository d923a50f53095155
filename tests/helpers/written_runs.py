"""Run directories written by hand, file by file, as docs/results-schema.md describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

VERSIONS = {"torch": "2.6.0", "metaworld": "3.1.1", "mujoco": "3.3.0", "cpu": "some CPU", "cores": "2"}


def write_run(
    path: Path,
    success: Mapping[str, Sequence[float]],
    *,
    method: str = "mean",
    seed: int = 0,
    finished: bool = True,
    versions: Mapping[str, str] = VERSIONS,
    metrics: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a run of the tasks in `success`, each with one rate per evaluation, 10 vector steps apart."""
    path.mkdir(parents=True)
    evaluations = len(next(iter(success.values())))
    settings: dict[str, Any] = {
        "tasks": list(success),
        "method": method,
        "method_options": {},
        "steps": 10 * evaluations if finished else 1000,
        "seed": seed,
        "suite": "metaworld",
        "suite_options": {"reward_version": "v2"},
        "env": {"num_goals": 50, "max_episode_steps": 500},
        "sac": {"gamma": 0.99},
        **(config or {}),
    }
    (path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    (path / "versions.json").write_text(json.dumps(dict(versions)))
    lines = [
        evaluation_line(10 * (k + 1), {task: rates[k] for task, rates in success.items()})
        for k in range(evaluations)
    ]
    if finished:
        lines[-1]["final"] = True
    (path / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return path


def evaluation_line(step: int, success: Mapping[str, float]) -> dict[str, Any]:
    """One line of evaluations.jsonl: last-step success is half of success, the return a hundred times it."""
    mean = sum(success.values()) / len(success)
    return {
        "vector_step": step,
        "env_steps": step * len(success),
        "wall_s": step / 2,
        "final": False,
        "episodes_per_task": 4,
        "mean_success": mean,
        "mean_success_last": mean / 2,
        "mean_return": 100 * mean,
        "tasks": {
            task: {"success": rate, "success_last": rate / 2, "return": 100 * rate, "episodes": 4}
            for task, rate in success.items()
        },
    }


def bare_run(path: Path) -> Path:
    """A run with a configuration and a checkpoint, in nobody's hands."""
    (path / "checkpoints/step_000000010").mkdir(parents=True)
    (path / "config.yaml").write_text("seed: 0\n")
    return path
