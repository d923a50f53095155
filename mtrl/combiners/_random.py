"""Random numbers of methods: a hash of a key, and of a stream and a step that are in a method's state.

A resume is therefore exact, and a CUDA graph draws new numbers in each replay. Different streams draw
different numbers at every step. Nothing here waits for the device.
"""

import math

import torch
from torch import Tensor

from mtrl.combiners.solvers.backends import has_kernels, has_numbers

_MASK = 2**64 - 1


def stream_key(stream: int, member: int = 0) -> int:
    """Return an int64 key for `stream` in [0, 2^63) and the number of a method within another."""
    value = 0
    for part in (stream, member):  # splitmix64, part by part; zeros give zero
        value = (value + part * 0x9E3779B97F4A7C15) & _MASK
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
        value ^= value >> 31
    return value - 2**64 if value >= 2**63 else value


def scrambled(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return pseudo-random int64 numbers of the shape of `keys` (distinct int64).

    `step` and `stream` (from `stream_key`) are int64 [1].
    """
    if has_numbers(keys):
        return _hashed(keys, step, stream)
    drawn: Tensor = _scrambled(keys, step, stream)
    return drawn


def _hashed(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return the finaliser of splitmix64 with logical shifts, on wrapping 64-bit integers."""
    value = (keys + step * 0x1E3779B97F4A7C15) ^ stream
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


# One launch on CUDA instead of thirteen.
@torch.library.custom_op("mtrl::scrambled", mutates_args=())
def _scrambled(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    if not has_kernels(keys):
        return _hashed(keys, step, stream)
    from mtrl.combiners.solvers.kernels import launch_hash

    with torch.cuda.device_of(keys):
        return launch_hash(keys, step, stream)


@_scrambled.register_fake
def _(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    return torch.empty_like(keys)


def shuffled(items: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return int64 `items` [R, N], each row in a random order of its own; all orders are equally likely."""
    if has_numbers(items):
        return _sorted(items, step, stream)
    drawn: Tensor = _shuffled(items, step, stream)
    return drawn


def _sorted(items: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return the items in the order of the hashes of their places, which are numbered from 1 on."""
    keys = torch.arange(1, items.numel() + 1, dtype=torch.int64, device=items.device).view(items.shape)
    return items.gather(-1, _hashed(keys, step, stream).argsort(dim=-1))


# One launch on CUDA instead of six.
@torch.library.custom_op("mtrl::shuffled", mutates_args=())
def _shuffled(items: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    if not has_kernels(items):
        return _sorted(items, step, stream)
    from mtrl.combiners.solvers.kernels import launch_shuffle

    with torch.cuda.device_of(items):
        return launch_shuffle(items, step, stream)


@_shuffled.register_fake
def _(items: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    return torch.empty_like(items)


def next_tasks(order: Tensor, count: int, step: Tensor, stream: Tensor) -> Tensor:
    """Return the cyclic order, int64 [T], rotated so that the `count` tasks of this step come first.

    Each step continues where the one before ended. The stream draws the start: all tasks are equally likely.
    """
    tasks = len(order)
    begin = (uniform(1, torch.zeros_like(step), stream) * tasks).to(torch.int64)
    places = torch.arange(tasks, dtype=torch.int64, device=order.device) + begin + step * count
    return order.index_select(0, places.remainder(tasks))


def uniform(count: int, step: Tensor, stream: Tensor, begin: int = 0) -> Tensor:
    """Return pseudo-random numbers in [0, 1), float64: `count` of a sequence from number `begin` on."""
    keys = torch.arange(begin + 1, begin + count + 1, dtype=torch.int64, device=step.device)
    return _upper_bits(scrambled(keys, step, stream)) * 2.0**-53


def int32s(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return pseudo-random int32 numbers of the shape of `keys` (distinct int64)."""
    return (scrambled(keys, step, stream) >> 32).to(torch.int32)


def normals(count: int, step: Tensor, stream: Tensor) -> Tensor:
    """Return `count` pseudo-random standard normal numbers, float64 (Box and Muller)."""
    keys = torch.arange(1, 2 * count + 1, dtype=torch.int64, device=step.device).view(2, count)
    drawn = (_upper_bits(scrambled(keys, step, stream)) + 0.5) * 2.0**-53  # in (0, 1): log(0) cannot occur
    return (-2.0 * drawn[0].log()).sqrt() * (2.0 * math.pi * drawn[1]).cos()


def _upper_bits(numbers: Tensor) -> Tensor:
    """Return the upper 53 bits of int64 numbers as integers in float64, which holds them exactly."""
    return ((numbers >> 11) & 0x1FFFFFFFFFFFFF).to(torch.float64)
