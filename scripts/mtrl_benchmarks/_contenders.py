"""Start the backends of the environment benchmark; measure how long that takes and how much memory."""

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from mtrl.device.resources import free_memory
from mtrl.envs import BENCHMARKS
from mtrl_benchmarks import report
from mtrl_benchmarks._physics import PhysicsProcesses
from mtrl_benchmarks._vectors import EnvPool, Gymnasium, Mtrl, StableBaselines, Vector

_PACKAGES = {"sb3_subproc": "stable_baselines3", "envpool": "envpool"}
_ONE_PER_TASK = ("gym_sync", "gym_async", "sb3_subproc")
_WHOLE_BENCHMARKS = ("gym_sync", "gym_async")
# GiB per environment, roughly, in MT50: a fresh process each, with a copy of the benchmark, is dear.
_PEER_GIB = {"gym_sync": 0.05, "gym_async": 0.1, "sb3_subproc": 0.3, "envpool": 0.03}
_SPARE_GIB = 1.0


class Contender:
    """One running backend with what its start cost."""

    def __init__(self, name: str, workers: int, num_envs: int, make: Callable[[], Vector]) -> None:
        self.name, self.workers, self.num_envs = name, workers, num_envs
        memory, began = tree_memory(), time.perf_counter()
        self.vector = make()
        self.vector.reset()
        self.startup_s = time.perf_counter() - began
        self.memory_mb = (tree_memory() - memory) / 1e6


def start(kind: str, names: Sequence[str], copies: int, workers: int) -> Contender | None:
    """Return a running backend, or None, with a note, where it is not installed or has no such layout."""
    makers: dict[str, Callable[[], Vector]] = {
        "mtrl": partial(Mtrl, names, copies, workers),
        "physics": partial(PhysicsProcesses, names, copies, workers),
        "gym_sync": partial(Gymnasium, names, "sync"),
        "gym_async": partial(Gymnasium, names, "async"),
        "sb3_subproc": partial(StableBaselines, names),
        "envpool": partial(EnvPool, names, copies, workers),
    }
    missing = _why_not(kind, names, copies)
    if missing:
        report.note(f"{kind}: left out, {missing}")
        return None
    report.note(f"starting {kind}: {len(names)} tasks x {copies}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own, about their spaces and wrappers
        return Contender(kind, workers, len(names) * copies, makers[kind])


def _why_not(kind: str, names: Sequence[str], copies: int) -> str:
    if kind in _PACKAGES and importlib.util.find_spec(_PACKAGES[kind]) is None:
        return f"{_PACKAGES[kind]} is not installed"
    if kind in _ONE_PER_TASK and copies > 1:
        return "its Meta-World vectors have one environment per task"
    if kind in _WHOLE_BENCHMARKS and tuple(names) not in BENCHMARKS.values():
        return "it makes whole benchmarks only"
    needed = _PEER_GIB.get(kind, 0.0) * len(names) * copies + _SPARE_GIB
    free = free_memory(torch.device("cpu")) / 2**30
    if kind in _PEER_GIB and needed > free:
        return f"it takes about {needed:.0f} GiB beside the others and {free:.0f} are free (--peers chooses)"
    return ""


def tree_memory() -> int:
    """Return the proportional set sizes of this process and its descendants in bytes, summed."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    total, todo = 0, [os.getpid()]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        total += _proportional(pid)
    return total


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
