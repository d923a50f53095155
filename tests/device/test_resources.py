"""Cores and memory that a process may use, read off control groups made of files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mtrl.device import resources
from mtrl.device.cpu import process_settings
from mtrl.device.resources import free_memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixteen cores and 64 GiB without control groups."""
    monkeypatch.setattr(resources, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resources, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(resources, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    write(tmp_path / "meminfo", f"MemTotal: 99 kB\nMemAvailable: {64 * 2**20} kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_affinity_and_free_memory_count(machine: Path) -> None:
    assert resources.available_cores() == 16
    assert resources.available_memory() == 64 * GIB
    assert free_memory(torch.device("cpu")) == 64 * GIB


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 16), ("150000 100000", 2), ("20000 100000", 1), ("9900000 100000", 16)],
)
def test_quota_of_version_two_bounds_the_cores(machine: Path, quota: str, cores: int) -> None:
    write(machine / "membership", "0::/job\n")
    write(machine / "cgroup" / "job" / "cpu.max", quota)
    assert resources.available_cores() == cores


def test_the_quota_of_a_group_further_up_counts_as_well(machine: Path) -> None:
    write(machine / "membership", "0::/slice/job\n")
    write(machine / "cgroup" / "slice" / "cpu.max", "300000 100000")
    write(machine / "cgroup" / "slice" / "job" / "cpu.max", "max 100000")
    assert resources.available_cores() == 3


def test_quota_of_version_one_bounds_the_cores(machine: Path) -> None:
    write(machine / "membership", "4:cpu,cpuacct:/docker/x\n")
    write(machine / "cgroup" / "cpu" / "cpu.cfs_quota_us", "400000")  # a container sees its group as the root
    write(machine / "cgroup" / "cpu" / "cpu.cfs_period_us", "100000")
    assert resources.available_cores() == 4
    write(machine / "cgroup" / "cpu" / "cpu.cfs_quota_us", "-1")
    assert resources.available_cores() == 16


def test_affinity_below_the_quota_wins(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine / "membership", "0::/\n")
    write(machine / "cgroup" / "cpu.max", "800000 100000")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3})
    assert resources.available_cores() == 1


def test_memory_limit_less_what_is_used_and_cannot_be_dropped(machine: Path) -> None:
    write(machine / "membership", "0::/job\n")
    folder = machine / "cgroup" / "job"
    write(folder / "memory.max", str(8 * GIB))
    write(folder / "memory.current", str(3 * GIB))
    assert resources.available_memory() == 5 * GIB
    write(folder / "memory.stat", f"anon 1\ninactive_file {GIB}\n")
    assert free_memory(torch.device("cpu")) == 6 * GIB
    write(folder / "memory.max", "max")
    assert resources.available_memory() == 64 * GIB


def test_memory_limit_of_version_one(machine: Path) -> None:
    write(machine / "membership", "9:memory:/job\n")
    folder = machine / "cgroup" / "memory" / "job"
    write(folder / "memory.limit_in_bytes", str(4 * GIB))
    write(folder / "memory.usage_in_bytes", str(5 * GIB))
    assert resources.available_memory() == 0


def test_memory_that_torch_keeps_for_its_next_tensors_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [GIB]
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free[-1], 80 * GIB))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: free.append(51 * GIB))
    assert free_memory(torch.device("cuda")) == 51 * GIB


@pytest.mark.parametrize("most", [2**31, 32 * 2**20])
def test_the_allocator_keeps_large_blocks_for_training_alone(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions of glibc refuse a threshold for mmap of more than 32 MiB."""
    held: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter == -3 and value > most:
            return 0
        held[parameter] = value
        return 1

    library = SimpleNamespace(mallopt=mallopt, malloc_trim=lambda pad: 1)
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    for variable in ("MMAP_THRESHOLD", "TRIM_THRESHOLD", "TOP_PAD"):
        monkeypatch.delenv(f"MALLOC_{variable}_", raising=False)
    with process_settings(None, "highest", torch.device("cpu")):
        assert held == {-3: min(GIB, most), -1: 2**31 - 1, -2: 64 * 2**20}
    # What glibc's own rule, which is off from now on, ends at in a process with large blocks.
    assert held == {-3: 32 * 2**20, -1: 64 * 2**20, -2: 128 * 2**10}
