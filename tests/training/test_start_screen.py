"""What the start screen says, and its advice on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtrl.config.schema import Config
from mtrl.training.start_screen import describe


class _Envs:
    task_names = ("reach-v3", "push-v3")
    num_tasks, num_envs, num_workers, num_goals = 2, 2, 1, 50


def _describe(steps: int) -> tuple[dict[str, str], list[str]]:
    envs: Any = _Envs()
    config = Config(tasks=_Envs.task_names, steps=steps)
    facts = {"networks": "two"}
    _, lines, notes = describe(config, facts, envs, Path("somewhere"), 0, torch.device("cpu"))
    return dict(lines), notes


def test_a_long_run_on_a_cpu_points_to_the_laptop_preset() -> None:
    facts, notes = _describe(2_000_000)
    assert facts["networks"] == "two"
    assert len(notes) == 1
    assert "--preset laptop" in notes[0]


def test_a_short_run_gets_no_advice() -> None:
    assert _describe(90_000)[1] == []
