"""Random numbers and orders of `_random` in one launch each; see `kernels`."""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def launch(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return the hashes of int64 keys."""
    keys = keys.contiguous()
    out = torch.empty_like(keys)
    count = keys.numel()
    hashed[(max(triton.cdiv(count, _BLOCK), 1),)](keys, step, stream, out, count, BLOCK=_BLOCK)
    return out


def launch_shuffle(items: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return int64 items [R, N], each row in a random order of its own."""
    items = items.contiguous()
    out = torch.empty_like(items)
    rows, columns = items.shape
    if columns > 0:
        shuffled[(rows,)](items, step, stream, out, columns, N=triton.next_power_of_2(columns))
    return out


@triton.jit
def _hash(value, step, stream):
    """`_random._hashed` of int64 numbers, with pointers to step and stream."""
    value = (value + tl.load(step) * 0x1E3779B97F4A7C15) ^ tl.load(stream)
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


@triton.jit
def hashed(keys, step, stream, out, count, BLOCK: tl.constexpr):
    """`_random._hashed`."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(keys + index, mask=index < count, other=0)
    tl.store(out + index, _hash(value, step, stream), mask=index < count)


@triton.jit
def shuffled(items, step, stream, out, columns, N: tl.constexpr):
    """Row `program_id` of `_random._sorted`."""
    first = tl.program_id(0).to(tl.int64) * columns
    index = tl.arange(0, N)
    own = _hash(first + index + 1, step, stream)
    place = index * 0
    # An item's place is the number of smaller hashes in its row. Hashes of different keys are different.
    for other in range(columns):
        place += (_hash(first + other + 1, step, stream) < own).to(tl.int32)
    within = index < columns
    tl.store(out + first + place, tl.load(items + first + index, mask=within, other=0), mask=within)
