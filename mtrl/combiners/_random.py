"""Random numbers from a counter that is part of a method's state: exact resume, no global stream, no host."""

from __future__ import annotations

import torch
from torch import Tensor


def scrambled(keys: Tensor, step: Tensor) -> Tensor:
    """Return pseudo-random int64 numbers of the shape of `keys` (distinct int64) for the 0-dim int64 `step`.

    Hash of (step, key): the finaliser of splitmix64 with logical shifts, on wrapping 64-bit integers.
    """
    value = keys + step * 0x1E3779B97F4A7C15
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def draw_tasks(num_tasks: int, count: int, step: Tensor) -> Tensor:
    """Return `count` of the tasks 0..num_tasks - 1 without repetition, int64, equally likely at each step."""
    keys = torch.arange(1, num_tasks + 1, dtype=torch.int64, device=step.device)
    return scrambled(keys, step).argsort()[:count]


def uniform(count: int, step: Tensor) -> Tensor:
    """Return `count` pseudo-random numbers in [0, 1), float64, for the 0-dim int64 `step`."""
    keys = torch.arange(1, count + 1, dtype=torch.int64, device=step.device)
    return ((scrambled(keys, step) >> 11) & 0x1FFFFFFFFFFFFF).to(torch.float64) * 2.0**-53
