"""What memory is free on a device, and the refusal of what does not fit."""

from __future__ import annotations

import torch

from mtrl.device.resources import available_memory
from mtrl.errors import UserError


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; for the CPU what machine and control groups can give."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = available_memory()
    # Where nothing tells (macOS), tensors are paged out on demand and bounded by nothing we can read.
    return 1 << 62 if available is None else available


def check_fits(needed: int, device: torch.device, *, what: str, advice: str) -> None:
    """Raise UserError with this advice if `needed` bytes are more than are free."""
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"{what} need {needed / 2**30:.1f} GiB on {device}, but {free / 2**30:.1f} GiB are free. {advice}"
        )
