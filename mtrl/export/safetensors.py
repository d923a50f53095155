"""Tensors by name as a .safetensors file, so that a policy needs no package but torch and numpy.

The format (github.com/huggingface/safetensors, README, "Format"): 8 bytes, the length of the header as an
unsigned little-endian integer; the header, JSON, name -> {dtype, shape, data_offsets}, padded with spaces to
a multiple of 8; the data, row-major, little-endian, gapless. Only 32-bit floats are written and read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.errors import UserError

_MAX_HEADER = 100_000_000  # the format's own limit


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a .safetensors file; tensors are float32, on any device."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    start = 0
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"tensors must be float32; found {tensor.dtype} for '{name}'.")
        parts.append(tensor.detach().cpu().contiguous().numpy().astype("<f4", copy=False).tobytes())
        stop = start + len(parts[-1])
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def from_bytes(content: bytes, place: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file's content, on the CPU; `place` names it in messages.

    Raises:
        UserError: it is cut short, of another format, or holds other than 32-bit floats.
    """
    length = int.from_bytes(content[:8], "little")
    data = content[8 + length :]
    try:
        if not 0 < length <= min(_MAX_HEADER, len(content) - 8):
            raise ValueError(f"a header of {length} bytes in a file of {len(content)}")
        header: dict[str, Any] = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        return {name: _tensor(entry, data) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{place}' is no .safetensors file of 32-bit floats: {error}.") from error


def _tensor(entry: Mapping[str, Any], data: bytes) -> Tensor:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if entry["dtype"] != "F32" or not 0 <= start <= stop <= len(data):
        raise ValueError(f"dtype {entry['dtype']} at {start}:{stop} of {len(data)} bytes")
    if stop - start != 4 * math.prod(shape):
        raise ValueError(f"{stop - start} bytes for the shape {list(shape)}")
    return torch.from_numpy(np.frombuffer(data[start:stop], dtype="<f4").astype(np.float32)).view(shape)
