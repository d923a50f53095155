"""States to save, and bit-exact comparison of what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def state_of(step: int) -> dict[str, Any]:
    """Small state that differs between steps in every part."""
    return {
        "agent": {"weight": torch.arange(300.0) + step, "name": "cagrad"},
        "rng": {"generator": np.random.default_rng(step).bit_generator.state},
        "counters": {"step": step, "returns": np.full(7, step + 0.5)},
    }


def stored_rows(parts: Mapping[str, Any]) -> torch.Tensor:
    """The replay's ring [T, size, W] in the parts of a checkpoint, which must not be empty."""
    found = [part for name, part in parts.items() if name.startswith("replay_")]
    pieces = [part() if callable(part) else part for part in found]
    pieces.sort(key=lambda piece: int(piece["first"]))
    return torch.cat([piece["rows"] for piece in pieces], dim=1)


def assert_same(found: Any, expected: Any) -> None:
    """Equal in type, dtype, shape and every bit."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert_same(bits(found), bits(expected))
    elif isinstance(expected, np.ndarray | np.generic):
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert type(found) is dict and list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert type(found) is float and found.hex() == expected.hex()
    else:
        assert type(found) is type(expected) and found == expected


def bits(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return tensor.contiguous().flatten().view(torch.uint8).numpy()


class Reports(list[str]):
    """Collects what `load_checkpoint` reports."""

    def __call__(self, text: str) -> None:
        self.append(text)
