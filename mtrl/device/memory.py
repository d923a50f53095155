"""What memory is free on a device, and the refusal of what does not fit."""

from __future__ import annotations

from pathlib import Path

import torch

from mtrl.errors import UserError


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; for the CPU what the system can give without swapping."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = [
        int(line.split()[1]) * 1024 for line in _meminfo().splitlines() if line.startswith("MemAvailable:")
    ]
    # Systems without /proc (macOS) page out on demand; there tensors are bounded by nothing we can read.
    return available[0] if available else 1 << 62


def check_fits(needed: int, device: torch.device, *, what: str, advice: str) -> None:
    """Raise UserError with this advice if `needed` bytes are more than are free."""
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB on {device}, but {free / 2**30:.1f} GiB are free. {advice}"
        )


def _meminfo() -> str:
    try:
        return Path("/proc/meminfo").read_text()
    except OSError:
        return ""
