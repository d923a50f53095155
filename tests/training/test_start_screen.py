"""The start screen's estimate, and its advice on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mtrl.training.start_screen
from mtrl.agents.sac.agent import MTSAC
from mtrl.config.schema import Config, NetworkConfig, SacConfig
from mtrl.training.start_screen import (
    describe,
    duration,
    parameter_count,
    seconds_per_update,
    seconds_per_vector_step,
)


class _Envs:
    task_names = ("reach-v3", "push-v3")
    num_tasks, num_envs, num_workers = 2, 2, 1


def _agent(config: Config) -> MTSAC:
    return MTSAC(
        num_tasks=2, obs_dim=39, action_dim=4, network=config.network, sac=config.sac, method=config.method,
        method_options={}, device=torch.device("cpu"), seed=0,
    )  # fmt: skip


CONFIG = Config(
    tasks=("reach-v3", "push-v3"),
    network=NetworkConfig(actor_width=8, actor_depth=1, critic_width=8, critic_depth=1),
    sac=SacConfig(batch_per_task=4),
)


def _describe(monkeypatch: pytest.MonkeyPatch, update_seconds: float) -> tuple[dict[str, str], list[str]]:
    monkeypatch.setattr(
        mtrl.training.start_screen, "seconds_per_update", lambda config, agent: update_seconds
    )
    envs: Any = _Envs()
    _, facts, notes = describe(CONFIG, _agent(CONFIG), envs, Path("somewhere"), 0)
    return dict(facts), notes


def test_a_run_of_days_on_a_cpu_says_so_and_points_to_the_laptop_preset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts, notes = _describe(monkeypatch, update_seconds=0.1)
    assert "2.3 days" in facts["estimate"]  # 2M updates of 0.1 s
    assert len(notes) == 1
    assert "2.3 days" in notes[0]
    assert "--preset laptop" in notes[0]


def test_a_short_run_gets_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _describe(monkeypatch, update_seconds=1e-4)[1] == []


def test_trained_parameters_are_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = 8 * (39 + 2) + 8 + 8 * (8 + 1)
    critics = 2 * (8 * (43 + 2) + 8 + (8 + 1))
    assert parameter_count(_agent(CONFIG)) == actor + critics + 2
    assert f"{actor + critics + 2:,} trained" in _describe(monkeypatch, 0.1)[0]["networks"]


def test_timing_an_update_leaves_the_agent_as_it_was() -> None:
    agent = _agent(CONFIG)
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    generator = agent.generator.get_state()
    assert seconds_per_update(CONFIG, agent) > 0
    assert all(torch.equal(before[name], value) for name, value in agent.state_dict().items())
    assert torch.equal(generator, agent.generator.get_state())


@pytest.mark.parametrize(
    ("environments", "workers", "updates", "threads", "cores", "expected"),
    [
        (8.0, 1, 20.0, 1, 2, 20.0),  # a core each: the slower side decides
        (30.0, 1, 20.0, 1, 2, 30.0),
        (8.0, 2, 20.0, 2, 2, 24.0),  # both want both cores: the work adds up
        (16.0, 16, 1.0, 1, 16, 1.0625),
    ],
)
def test_environments_and_updates_overlap_as_far_as_there_are_cores(
    environments: float, workers: int, updates: float, threads: int, cores: int, expected: float
) -> None:
    estimate = seconds_per_vector_step(
        environments=environments, workers=workers, updates=updates, threads=threads, cores=cores
    )
    assert estimate == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (59, "59 s"), (90, "1.5 minutes"), (7200, "2.0 hours"), (200_000, "2.3 days")],
)
def test_durations_read_like_a_persons(seconds: float, text: str) -> None:
    assert duration(seconds) == text
