"""A small vector that a method learns by Adam: a few operations on buffers, no optimiser object, no host."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Adam's defaults (Kingma and Ba, ICLR 2015), which all methods that learn their weights keep.
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class Learned(nn.Module):
    """Numbers `value` [size], float64, zero at first, moved by Adam.

    Args:
        size: of the vector.
        lr: step size.
        weight_decay: share of `value` added to its gradient (L2 form).
    """

    def __init__(self, size: int, *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.lr, self.weight_decay = lr, weight_decay
        self.value: Tensor
        self.first: Tensor
        self.second: Tensor
        self.step: Tensor
        for name in ("value", "first", "second"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))
        self.register_buffer("step", torch.zeros(1, dtype=torch.float64))

    def update(self, gradient: Tensor) -> None:
        """Take one step against `gradient` [size]."""
        gradient = gradient + self.weight_decay * self.value
        self.step.add_(1.0)
        self.first.lerp_(gradient, 1.0 - _BETA1)
        self.second.lerp_(gradient.square(), 1.0 - _BETA2)
        first = self.first / (1.0 - _BETA1**self.step)
        second = self.second / (1.0 - _BETA2**self.step)
        self.value.sub_(self.lr * first / (second.sqrt() + _EPS))

    def reset(self) -> None:
        """Back to zero."""
        for buffer in (self.value, self.first, self.second, self.step):
            buffer.zero_()
