"""What a ring of transitions held at one moment, read piece by piece while the ring is written to.

A checkpoint of a gigabyte takes seconds to hash and write; training must not wait for it, and a copy of the
whole ring would take as much memory again. So whoever writes to the ring hands the rows that are about to be
overwritten to every view still in use, and a piece is read as: copy what the ring holds now, then put back
what was overwritten meanwhile. A view costs one piece and the few rows written while it is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

# Saving a piece keeps the interpreter for a while, in which training stands still.
PIECE_BYTES = 16 << 20


class RingView:
    """Slots 0 to `size` of a ring [T, C, W] as they are now.

    Args:
        ring: the live tensor. On CUDA it is copied to the host at once: a copy from another thread could
            fall into the capture of a graph, and the bus is faster than any disk.
        size: slots in use.
    """

    def __init__(self, ring: Tensor, size: int) -> None:
        self._ring, self._size = ring[:, :size], size
        if ring.device.type != "cpu":
            self._ring = self._ring.cpu()
        self._kept: list[tuple[int, Tensor]] = []  # first slot and rows, in the order of being overwritten

    def keep(self, first: int, rows: Tensor) -> None:
        """Take in the rows [T, E, W] from slot `first` on, which are about to be overwritten."""
        if self._ring.device == rows.device and first < self._size:
            self._kept.append((first, rows.clone()))

    def pieces(self, piece_bytes: int | None = None) -> dict[int, Callable[[], dict[str, Any]]]:
        """Return piece number -> a function of the part that holds it: `first` slot and `rows`."""
        tasks, _, width = self._ring.shape
        slots = max(1, (piece_bytes or PIECE_BYTES) // (tasks * width * self._ring.element_size()))
        return {
            number: lambda first=first: self._piece(first, min(first + slots, self._size))  # type: ignore[misc]
            for number, first in enumerate(range(0, self._size, slots))
        }

    def _piece(self, first: int, end: int) -> dict[str, Any]:
        rows = self._ring[:, first:end].clone()
        # The newest first, so that of a slot overwritten twice the oldest content stays.
        for start, kept in reversed(self._kept):
            low, high = max(start, first), min(start + kept.shape[1], end)
            if low < high:
                rows[:, low - first : high - first] = kept[:, low - start : high - start]
        return {"first": first, "rows": rows}
