"""Four counting tasks in two worker processes, and whether processes are there. Imports no torch."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from mtrl.envs.engine.supervision import Notify, warn
from mtrl.envs.engine.vector import TaskVectorEnv
from tests.helpers.counting_env import CountingSuite

TASKS = ("task-0", "task-1", "task-2", "task-3")


def make(step_timeout: float = 20.0, max_restarts: int = 0, notify: Notify = warn) -> TaskVectorEnv:
    """Worker 0 steps tasks 0 and 2, worker 1 tasks 1 and 3."""
    return TaskVectorEnv(
        CountingSuite(TASKS),
        seed=0,
        num_workers=2,
        step_timeout=step_timeout,
        max_restarts=max_restarts,
        notify=notify,
    )


def action(row: int, special: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    actions = np.zeros((4, 4), np.float32)
    actions[row, 3] = special
    return actions


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.02)
    return not any(map(alive, pids))


def libraries(pid: int) -> set[str]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in ("libtorch", "libcuda", "libc10") if name in maps}
