"""The physics limit: MuJoCo alone on the models of the environments, in several processes at once."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.engine.pool import balanced
from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.suite import MetaWorldSuite
from mtrl.envs.metaworld.tasks import STEP_COSTS
from mtrl_benchmarks._vectors import Vector

_STATE: list[Any] = []  # the environments of one process, which its calls share


class PhysicsProcesses(Vector):
    """Five `mj_step` and one `mj_forward` per env step, actions applied to the hand and the gripper."""

    def __init__(self, names: Sequence[str], copies: int, processes: int) -> None:
        self._rows = balanced([name for name in names for _ in range(copies)], processes, STEP_COSTS)
        with TaskVectorEnv(MetaWorldSuite(names), seed=0, num_workers=1) as envs:
            goals = {name: vectors[0] for name, vectors in envs.goal_sets.items()}
        # One pool per process: each keeps its own environments. Fresh interpreters, like mtrl's workers.
        self._pools = [
            ProcessPoolExecutor(
                1,
                get_context("spawn"),
                _build,
                ([(names[row // copies], goals[names[row // copies]]) for row in rows],),
            )
            for rows in self._rows
        ]

    def reset(self) -> None:
        """Begin an episode everywhere."""
        for future in [pool.submit(_reset) for pool in self._pools]:
            future.result()

    def step(self, action: Any) -> None:
        """Step all models."""
        self.seconds([action])

    def seconds(self, actions: Sequence[Any]) -> float:
        """Return the time of stepping through the actions if the processes shared the work without loss."""
        stacked = np.array(actions)
        futures = [
            pool.submit(_step, stacked[:, list(rows)])
            for pool, rows in zip(self._pools, self._rows, strict=True)
        ]
        return sum(future.result() for future in futures) / len(futures)

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()


def _build(tasks: Sequence[tuple[str, NDArray[np.float64]]]) -> None:
    from mtrl.envs.metaworld.simulation import make_env

    _STATE[:] = [make_env(name, goal[None]) for name, goal in tasks]


def _reset() -> None:
    for env in _STATE:
        env.reset(0)


def _step(actions: NDArray[np.float32]) -> float:
    """Return the seconds that the physics of the steps [K, own rows, 4] take."""
    import mujoco

    commands = actions[..., :3].astype(np.float64) / 100
    grips = actions[..., 3:].astype(np.float64) * [1, -1]
    parts = [(env.env.model, env.env.data, env.env.mocap_low, env.env.mocap_high) for env in _STATE]
    seconds = 0.0
    for command, grip in zip(commands, grips, strict=True):
        for row, (_, data, low, high) in enumerate(parts):
            data.mocap_pos[0] = np.clip(data.mocap_pos[0] + command[row], low, high)
            data.ctrl[:] = grip[row]
        began = time.perf_counter()
        for model, data, _, _ in parts:
            mujoco.mj_step(model, data, nstep=5)
            mujoco.mj_forward(model, data)
        seconds += time.perf_counter() - began
    return seconds
