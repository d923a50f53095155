"""Random numbers from a stream and a counter in a method's state: exact resume, no global stream, no host.

A number is a hash of (stream, step, key): instances of other streams draw others at every step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_WORD = 2**64 - 1


def stream_key(stream: int, member: int = 0) -> int:
    """Return the int64 that `stream` in [0, 2^63) and the number of a method within another stand for."""
    value = 0
    for part in (stream, member):  # splitmix64, part by part; zeros give zero
        value = (value + part * 0x9E3779B97F4A7C15) & _WORD
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _WORD
        value ^= value >> 31
    return value - 2**64 if value >= 2**63 else value


def scrambled(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return pseudo-random int64 numbers of the shape of `keys` (distinct int64).

    `step` and `stream` are int64 [1], the latter of `stream_key`. The finaliser of splitmix64 with logical
    shifts, on wrapping 64-bit integers.
    """
    value = (keys + step * 0x1E3779B97F4A7C15) ^ stream
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def draw_tasks(num_tasks: int, count: int, step: Tensor, stream: Tensor) -> Tensor:
    """Return `count` of the tasks 0..num_tasks - 1 without repetition, int64, equally likely at each step."""
    keys = torch.arange(1, num_tasks + 1, dtype=torch.int64, device=step.device)
    return scrambled(keys, step, stream).argsort()[:count]


def next_tasks(order: Tensor, count: int, step: Tensor, stream: Tensor) -> Tensor:
    """Return the `count` tasks of an order, int64 [T], whose turn it is at `step`.

    The order is a round trip. Each step goes on where the one before ended. Where the trip begins is drawn
    from the stream, so that at any step all tasks are equally likely.
    """
    tasks = len(order)
    begin = (uniform(1, torch.zeros_like(step), stream) * tasks).to(torch.int64)
    places = torch.arange(count, dtype=torch.int64, device=order.device) + begin + step * count
    return order.index_select(0, places.remainder(tasks))


def uniform(count: int, step: Tensor, stream: Tensor) -> Tensor:
    """Return `count` pseudo-random numbers in [0, 1), float64."""
    keys = torch.arange(1, count + 1, dtype=torch.int64, device=step.device)
    return ((scrambled(keys, step, stream) >> 11) & 0x1FFFFFFFFFFFFF).to(torch.float64) * 2.0**-53


def normals(count: int, step: Tensor, stream: Tensor) -> Tensor:
    """Return `count` pseudo-random standard normal numbers, float64 (Box and Muller)."""
    keys = torch.arange(1, 2 * count + 1, dtype=torch.int64, device=step.device).view(2, count)
    # The upper 53 bits as a number in (0, 1).
    drawn = (((scrambled(keys, step, stream) >> 11) & 0x1FFFFFFFFFFFFF).to(torch.float64) + 0.5) * 2.0**-53
    return (-2.0 * drawn[0].log()).sqrt() * (2.0 * math.pi * drawn[1]).cos()
