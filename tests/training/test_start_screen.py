"""What the start screen says, and its advice on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mtrl.config.presets import build_config, load_preset
from mtrl.config.schema import Config, EnvConfig, EvalConfig, TrainConfig
from mtrl.envs import build_suite
from mtrl.envs.metaworld.suite import MetaWorldSuite
from mtrl.envs.suite import TaskSuite
from mtrl.training.start_screen import describe


class _Envs:
    task_names = ("reach-v3", "push-v3")
    num_tasks, num_envs, num_workers = 2, 2, 1

    def __init__(self, suite: TaskSuite | None = None) -> None:
        self.suite = suite or MetaWorldSuite(self.task_names)


def _describe(
    steps: int, suite: TaskSuite | None = None, device: str = "cpu", **settings: Any
) -> tuple[dict[str, str], list[str]]:
    envs: Any = _Envs(suite)
    config = Config(steps=steps, **{"tasks": _Envs.task_names, **settings})
    facts = {"networks": "two"}
    _, lines, notes = describe(config, facts, envs, Path("somewhere"), 0, torch.device(device))
    return dict(lines), notes


def test_a_long_run_on_a_cpu_points_to_the_laptop_preset() -> None:
    facts, notes = _describe(2_000_000)
    assert facts["networks"] == "two"
    assert len(notes) == 1
    assert "--preset laptop" in notes[0]


@pytest.mark.parametrize(
    ("precision", "products"), [("auto", "TF32"), ("highest", "float32"), ("medium", "bfloat16")]
)
def test_on_a_gpu_the_precision_of_products_is_stated(
    precision: Literal["auto", "highest", "medium"], products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    facts, notes = _describe(90_000, device="cuda", train=TrainConfig(matmul_precision=precision))
    assert facts["device"] == f"cuda (a card, products in {products})"
    assert notes == []


def test_the_whole_protocol_on_a_gpu_points_to_its_fast_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    (note,) = _describe(2_000_000, device="cuda", tasks=("MT10",))[1]
    assert "--preset mt10_fast" in note
    fast = build_config(load_preset("mt10_fast"))
    assert _describe(fast.steps, device="cuda", tasks=("MT10",), env=fast.env, train=fast.train)[1] == []
    assert _describe(2_000_000, device="cuda", tasks=("MT50",))[1] == []


def test_both_lengths_of_episodes_are_stated_where_they_differ() -> None:
    assert "500 steps per episode, " in _describe(90_000)[0]["protocol"]
    facts, _ = _describe(90_000, env=EnvConfig(max_episode_steps=200), eval=EvalConfig(max_episode_steps=500))
    assert "200 steps per episode (500 in evaluations), " in facts["protocol"]


def test_a_short_run_gets_no_advice() -> None:
    assert _describe(90_000)[1] == []


@pytest.mark.parametrize(("num_goals", "said"), [(None, "any seed,"), (7, "7 seeds,")])
def test_episodes_that_start_from_seeds_are_not_counted_as_goals(num_goals: int | None, said: str) -> None:
    suite = build_suite("gymnasium", ["Pendulum-v1"], num_goals=num_goals)
    for environments in (None, {"light": {"id": "Pendulum-v1", "set": {"m": 0.5}}}):
        facts, _ = _describe(90_000, suite, suite_options={"environments": environments})
        assert facts["protocol"].startswith(said)
    assert "50 goals," in _describe(90_000)[0]["protocol"]
