"""Inner products of per-task gradients that are formed and used up in blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class GramSum:
    """Adds up inner products of per-task gradients while a layer forms them in blocks.

    Attributes:
        chunk: most parameters of a block.
        total: [T, T] so far; None: no layer formed blocks.
    """

    def __init__(self, gramian: Callable[[Tensor], Tensor], chunk: int) -> None:
        self._gramian = gramian
        self._used = False
        self.chunk = chunk
        self.total: Tensor | None = None

    def claim(self) -> GramSum:
        """Announce one use of the parameter; the products of a second one would lack those between both."""
        if self._used:
            raise RuntimeError("a parameter is used twice in a loss: its Gramian cannot be formed in blocks.")
        self._used = True
        return self

    def add(self, block: Tensor) -> None:
        """Add a block [T, ...] of the parameter's per-task gradient."""
        products = self._gramian(block.flatten(1))
        self.total = products if self.total is None else self.total + products
