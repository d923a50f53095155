"""A run directory around an untrained agent with random parameters: what an export reads, made in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtrl.agents.base import Agent
from mtrl.config.presets import save_config
from mtrl.config.schema import Config
from mtrl.runs.checkpoint import save_checkpoint
from mtrl.training.resolve import build_agent, suite_of
from tests.helpers.short_runs import COUNTING
from tests.helpers.short_runs import config as short_config


def random_run(path: Path, step: int = 30, **changes: Any) -> tuple[Config, Agent]:
    """Write config.yaml and a checkpoint of an agent whose policy has parameters of size 0.3."""
    config = short_config(**{**COUNTING, **changes})
    agent = build_agent(config, suite_of(config), torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    policy = {
        name: torch.randn(value.shape, generator=generator).mul_(0.3)
        for name, value in agent.state()["policy"].items()
    }
    agent.load_policy(policy)
    path.mkdir(parents=True)
    save_config(config, path / "config.yaml")
    save_checkpoint(path, step, {"policy": policy}, keep=1)
    return config, agent
