"""Long runs: memory, descriptors and shared memory stay where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.suite import MetaWorldSuite

pytestmark = pytest.mark.slow


def resident(pid: int) -> int:
    """Bytes of a process's anonymous memory that are in RAM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def shared_memory(pid: int) -> tuple[int, list[str]]:
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum("mtrl-envs" in line for line in maps), [
        name for name in os.listdir("/dev/shm") if "mtrl" in name
    ]


@pytest.mark.timeout(900)
def test_twenty_thousand_vector_steps_take_no_more_memory_than_two_thousand() -> None:
    rng = np.random.default_rng(0)
    tasks = ["push-v3", "door-open-v3", "drawer-close-v3", "basketball-v3"]
    with TaskVectorEnv(MetaWorldSuite(tasks), seed=0) as envs:
        processes = [os.getpid(), *envs.worker_pids]
        envs.reset()
        seen: list[list[object]] = []
        memory: list[list[int]] = []
        for step in range(22_000):
            envs.step(rng.uniform(-1, 1, (4, 4)).astype(np.float32))
            if step % 4_000 == 2_000:
                seen.append([(descriptors(pid), shared_memory(pid)) for pid in processes])
                memory.append([resident(pid) for pid in processes])
        assert envs.worker_pids == processes[1:]
    assert all(counts == seen[0] for counts in seen)
    growth = np.array(memory[-1]) - np.array(memory[0])
    assert growth.max() < 2 * 2**20, f"bytes grown over 16,000 vector steps, per process: {growth}"
