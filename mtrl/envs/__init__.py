"""Meta-World as a vector of environments in worker processes. Imports neither torch nor metaworld."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtrl.envs.metaworld.tasks import ACTION_SIZE, BENCHMARKS, OBS_SIZE, resolve_tasks

if TYPE_CHECKING:
    from mtrl.envs.engine.vector import MetaWorldVectorEnv
    from mtrl.envs.make import make_envs

__all__ = ["ACTION_SIZE", "BENCHMARKS", "OBS_SIZE", "MetaWorldVectorEnv", "make_envs", "resolve_tasks"]


def __getattr__(name: str) -> Any:
    # Gymnasium takes a tenth of a second to import, which `--help` need not pay.
    home = {"MetaWorldVectorEnv": "mtrl.envs.engine.vector", "make_envs": "mtrl.envs.make"}.get(name)
    if home is not None:
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
