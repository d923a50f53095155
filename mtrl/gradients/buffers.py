"""Buffers of modules, such as running statistics: a step moves them once, however often it evaluates."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner


class _Entry(NamedTuple):
    module: nn.Module
    name: str
    buffer: Tensor | None  # the tensor itself: a forward pass may put another one in its place
    value: Tensor | None  # a copy of its numbers; None: nothing can be written to it


class Buffers:
    """The buffers that forward passes of modules write, which can be put back to what they were.

    A combiner among the modules is left out, since `mtl_step` looks after its state.

    Args:
        modules: theirs and those of all modules in them.
        leaves: parameters that the step moves. Buffers that share their memory, which are views of them, are
            left out.
    """

    def __init__(self, modules: Sequence[nn.Module], leaves: Sequence[Tensor]) -> None:
        self._modules = modules
        self._moving = {_memory(leaf) for leaf in leaves} - {None}
        self._first = self._kept = self._now()

    def keep(self) -> None:
        """Remember the buffers as they are now."""
        self._kept = self._now()

    def restore(self) -> None:
        """Put back what was remembered last."""
        _put_back(self._kept)

    def start(self, batch: int) -> None:
        """Restore what evaluations of a batch start from: the first values for batch 0, else those kept."""
        _put_back(self._kept if batch else self._first)

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Restore the present values after the block; hooks may have written them after an evaluation."""
        now = self._now()
        try:
            yield
        finally:
            _put_back(now)

    def _now(self) -> list[_Entry]:
        return [
            _Entry(module, name, buffer, _copy(buffer))
            for root in self._modules
            for module in _without_combiners(root)
            for name, buffer in module._buffers.items()
            if buffer is None or _memory(buffer) not in self._moving
        ]


def _without_combiners(root: nn.Module) -> Iterator[nn.Module]:
    passed: set[nn.Module] = {module for module in root.modules() if isinstance(module, Combiner)}
    return (module for _, module in root.named_modules(passed))


def _memory(tensor: Tensor) -> int | None:
    """Return a number that tensors of the same memory share."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None


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
