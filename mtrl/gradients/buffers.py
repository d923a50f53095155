"""Buffers of modules, such as running statistics: a step moves them once, however often it evaluates."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Entry(NamedTuple):
    module: nn.Module
    name: str
    buffer: Tensor | None  # the tensor itself: a forward pass may put another one in its place
    value: Tensor | None  # a copy of its numbers; None: nothing can be written to it


class Buffers:
    """The buffers of modules, which can be put back to what they were.

    Args:
        modules: theirs and those of all modules in them.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._first = self._kept = self._now()

    def keep(self) -> None:
        """Remember the buffers as they are now."""
        self._kept = self._now()

    def restore(self) -> None:
        """Put back what was remembered last."""
        _put_back(self._kept)

    def start(self, batch: int) -> None:
        """Put back what every evaluation of a batch starts from: of batch 0, what was there at first."""
        _put_back(self._kept if batch else self._first)

    def discard(self) -> None:
        """Put back what was there at first, and remember it."""
        self._kept = self._first
        self.restore()

    def _now(self) -> list[_Entry]:
        return [
            _Entry(module, name, buffer, _copy(buffer))
            for root in self._modules
            for module in root.modules()
            for name, buffer in module._buffers.items()
        ]


def _copy(buffer: Tensor | None) -> Tensor | None:
    if buffer is None:
        return None
    sizes = zip(buffer.shape, buffer.stride(), strict=True) if buffer.layout == torch.strided else ()
    expanded = any(stride == 0 and size > 1 for size, stride in sizes)
    return None if expanded else buffer.detach().clone()


def _put_back(entries: Sequence[_Entry]) -> None:
    same: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for module, name, buffer, value in entries:
        module._buffers[name] = buffer
        if buffer is None or value is None:
            continue
        if buffer.shape == value.shape:
            # By `data`, which autograd does not count as a change: graphs that are still needed have seen
            # the same numbers.
            buffers, values = same.setdefault((buffer.device, buffer.dtype), ([], []))
            buffers.append(buffer.data)
            values.append(value)
        else:  # it was resized in place
            buffer.data = value.clone()
    for buffers, values in same.values():
        torch._foreach_copy_(buffers, values)  # one launch for many small buffers
