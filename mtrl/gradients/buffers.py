"""Buffers of modules, such as running statistics: a step moves them once, however often it evaluates."""

from collections.abc import Sequence

from torch import Tensor, nn


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
        for module, name, value in self._kept:
            now = module._buffers.get(name)
            if now is not None and now.shape == value.shape:
                # `data`, as this is no change for a graph that is still needed: it has seen these numbers.
                now.data.copy_(value)
            else:  # a cache that grew with its inputs is another tensor now
                module._buffers[name] = value.clone()

    def discard(self) -> None:
        """Put back what was there at first."""
        self._kept = self._first
        self.restore()

    def _now(self) -> list[tuple[nn.Module, str, Tensor]]:
        return [
            (module, name, buffer.clone())
            for root in self._modules
            for module in root.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
