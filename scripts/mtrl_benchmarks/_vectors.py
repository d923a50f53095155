"""mtrl and its peers as vectors of Meta-World environments with one interface."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np

import mtrl.envs.metaworld.simulation  # noqa: F401 - registers upstream's environments with gymnasium
from mtrl.envs import BENCHMARKS
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.suite import MetaWorldSuite


class Vector(ABC):
    """T x E environments in task-major order."""

    @abstractmethod
    def reset(self) -> None:
        """Begin an episode everywhere."""

    @abstractmethod
    def step(self, action: Any) -> None:
        """Step with actions [T*E, 4] and wait for the result."""

    @abstractmethod
    def close(self) -> None:
        """End processes and threads."""

    def seconds(self, actions: Sequence[Any]) -> float:
        """Return the wall time of stepping through the actions."""
        began = time.perf_counter()
        for action in actions:
            self.step(action)
        return time.perf_counter() - began


class Wrapped(Vector):
    """A vector environment with the customary methods."""

    _envs: Any

    def reset(self) -> None:
        """Begin an episode everywhere."""
        self._envs.reset()

    def step(self, action: Any) -> None:
        """Step all environments."""
        self._envs.step(action)

    def close(self) -> None:
        """End its processes."""
        self._envs.close()


class Mtrl(Wrapped):
    """The environments of this package, always on the same goals."""

    def __init__(self, names: Sequence[str], copies: int, workers: int) -> None:
        self._envs = TaskVectorEnv(MetaWorldSuite(names), seed=0, envs_per_task=copies, num_workers=workers)

    def reset(self) -> None:
        """Begin an episode everywhere."""
        self._envs.reset(options={"goal": np.zeros(self._envs.num_envs, np.int64)})


class Gymnasium(Wrapped):
    """`gymnasium.make_vec` of a whole benchmark, as Meta-World documents it."""

    def __init__(self, names: Sequence[str], strategy: str) -> None:
        benchmark = next(key for key, tasks in BENCHMARKS.items() if tasks == tuple(names))
        self._envs = gymnasium.make_vec(f"Meta-World/{benchmark}", vector_strategy=strategy, seed=0)


class StableBaselines(Wrapped):
    """SubprocVecEnv over single-task environments."""

    def __init__(self, names: Sequence[str]) -> None:
        from stable_baselines3.common.vec_env import SubprocVecEnv

        self._envs = SubprocVecEnv([partial(_single, name) for name in names], start_method="forkserver")


def _single(name: str) -> Any:
    return gymnasium.make("Meta-World/MT1", env_name=name, seed=0)


class EnvPool(Vector):
    """One pool per task, which is all it offers; all step at once, on as many threads as there are cores."""

    def __init__(self, names: Sequence[str], copies: int, threads: int) -> None:
        import envpool

        ids = ["MetaWorld/" + "".join(part.capitalize() for part in name.split("-")[:-1]) for name in names]
        self._copies = copies
        self._pools = [
            envpool.make_gymnasium(f"{task}-v3", num_envs=copies, num_threads=min(copies, threads), seed=0)
            for task in ids
        ]

    def reset(self) -> None:
        """Begin an episode everywhere."""
        for pool in self._pools:
            pool.reset()

    def step(self, action: Any) -> None:
        """Step all environments."""
        for task, pool in enumerate(self._pools):
            pool.send(action[task * self._copies : (task + 1) * self._copies])
        for pool in self._pools:
            pool.recv()

    def close(self) -> None:
        """End its threads."""
        for pool in self._pools:
            pool.close()
        self._pools.clear()
