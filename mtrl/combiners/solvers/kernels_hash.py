"""The hash of `_random.scrambled` in one launch; see `kernels_path`."""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

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


@triton.jit
def hashed(keys, step, stream, out, count, BLOCK: tl.constexpr):
    """`_random._hashed`."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(keys + index, mask=index < count, other=0)
    value = (value + tl.load(step) * 0x1E3779B97F4A7C15) ^ tl.load(stream)
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    tl.store(out + index, value ^ ((value >> 31) & 0x1FFFFFFFF), mask=index < count)
