"""Meta-World under another version number, as far as the exact speed-ups can tell."""

from __future__ import annotations

from typing import Any

from mtrl.envs.metaworld.suite import MetaWorldSuite
from mtrl.envs.suite import TaskEnv


class OtherVersionSuite(MetaWorldSuite):
    def make_env(self, task: str, goals: Any, **options: Any) -> TaskEnv:
        from mtrl.envs.metaworld import speedups  # in the worker alone

        vars(speedups)["version"] = lambda name: "99.0"
        return super().make_env(task, goals, **options)
