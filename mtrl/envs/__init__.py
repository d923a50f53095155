"""Suites of tasks as vectors of environments in worker processes. Imports no torch and no simulation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtrl.envs.metaworld.tasks import ACTION_SIZE, BENCHMARKS, OBS_SIZE, resolve_tasks

if TYPE_CHECKING:
    from mtrl.envs.engine.vector import TaskVectorEnv
    from mtrl.envs.suite import build_suite

__all__ = ["ACTION_SIZE", "BENCHMARKS", "OBS_SIZE", "TaskVectorEnv", "build_suite", "resolve_tasks"]

# Imported on first use: worker processes import this package and need no vector of environments.
_HOMES = {"TaskVectorEnv": "mtrl.envs.engine.vector", "build_suite": "mtrl.envs.suite"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
