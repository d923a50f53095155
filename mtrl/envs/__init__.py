"""Suites of tasks as vectors of environments in worker processes. Imports neither torch nor a simulation."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtrl.envs.metaworld.tasks import ACTION_SIZE, BENCHMARKS, OBS_SIZE, resolve_tasks

if TYPE_CHECKING:
    from mtrl.envs.engine.vector import TaskVectorEnv
    from mtrl.envs.make import build_suite, make_envs

__all__ = [
    "ACTION_SIZE",
    "BENCHMARKS",
    "OBS_SIZE",
    "TaskVectorEnv",
    "build_suite",
    "make_envs",
    "resolve_tasks",
]

# Gymnasium takes a tenth of a second to import, which `--help` need not pay.
_HOMES = {
    "TaskVectorEnv": "mtrl.envs.engine.vector",
    "build_suite": "mtrl.envs.make",
    "make_envs": "mtrl.envs.make",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
