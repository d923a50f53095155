"""What memory is free on a device."""

from __future__ import annotations

from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; for the CPU what the system can give without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = [
        int(line.split()[1]) * 1024 for line in _meminfo().splitlines() if line.startswith("MemAvailable:")
    ]
    # Systems without /proc (macOS) page out on demand; there tensors are bounded by nothing we can read.
    return available[0] if available else 1 << 62


def _meminfo() -> str:
    try:
        return Path("/proc/meminfo").read_text()
    except OSError:
        return ""
