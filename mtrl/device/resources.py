"""Cores and memory that this process may use. Imports torch only for a GPU's memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mtrl.errors import UserError

if TYPE_CHECKING:
    import torch

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_cores() -> int:
    """Cores that this process may use: its affinity (taskset, SLURM), bounded by its CPU quota."""
    # macOS has no affinities.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _cpu_quota())))


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping or an out-of-memory kill; None if unknown."""
    bounds = [
        int(line.split()[1]) * 1024
        for line in _read(_MEMINFO).splitlines()
        if line.startswith("MemAvailable:")
    ]
    for folder in _folders("memory"):
        for limit_name, usage_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, usage = _read(folder / limit_name).strip(), _read(folder / usage_name).strip()
            if limit.isdecimal() and usage.isdecimal():
                bounds.append(max(0, int(limit) - int(usage) + _page_cache(folder)))
    return min(bounds, default=None)


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; for the CPU, what the machine and its control groups allow."""
    if device.type == "cuda":
        import torch

        # Torch keeps freed blocks, which the device counts as used, those of live CUDA graphs for good.
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    available = available_memory()
    # Unknown on macOS, which pages memory out on demand, so nothing is refused there.
    return 1 << 62 if available is None else available


def check_fits(needed: int, device: torch.device, *, what: str, advice: str) -> None:
    """Raise UserError with this advice if fewer than `needed` bytes are free."""
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB on {device}, but {free / 2**30:.1f} GiB are free. {advice}"
        )


def _cpu_quota() -> float:
    """The smallest CPU quota of all levels of control groups, in cores; infinite without any."""
    quotas = [math.inf]
    for folder in _folders("cpu"):
        second = _read(folder / "cpu.max").split()  # version 2: "max 100000" or "150000 100000"
        first = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        quotas += [
            int(numbers[0]) / int(numbers[1])
            for numbers in (second, first)
            if len(numbers) == 2 and all(map(str.isdecimal, numbers)) and int(numbers[1]) > 0
        ]
    return min(quotas)


def _page_cache(folder: Path) -> int:
    """Bytes that count as used by a control group but that the kernel frees when memory is needed."""
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdecimal():
            return int(value)
    return 0


def _folders(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups and of their parents, whose limits apply as well."""
    for line in _read(_MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controller if controllers else _CGROUPS
        # A container often sees its own group as the root, whatever the path is.
        own = Path(path.lstrip("/"))
        yield from (root / level for level in (own, *own.parents) if (root / level).is_dir())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
