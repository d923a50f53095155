"""A place on the host for copies to and from one device tensor: pinned and asynchronous on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor


class Staging:
    """Host counterpart of a device tensor; on the CPU the tensor itself, where nothing is copied.

    Attributes:
        host: tensor on the host, of the shape and dtype of the device tensor. Write to it only after
            `wait`, or after a `receive`.
    """

    def __init__(self, device_tensor: Tensor) -> None:
        self._device_tensor = device_tensor
        self._sent: torch.cuda.Event | None = None
        if device_tensor.is_cuda:
            self.host = torch.zeros(device_tensor.shape, dtype=device_tensor.dtype, pin_memory=True)
            self._sent = torch.cuda.Event()
        else:
            self.host = device_tensor

    def send(self) -> None:
        """Start the copy to the device; operations on the current stream see it."""
        if self._sent is not None:
            self._device_tensor.copy_(self.host, non_blocking=True)
            self._sent.record()

    def wait(self) -> None:
        """Wait until the last `send` has read the host's tensor."""
        if self._sent is not None:
            self._sent.synchronize()

    def receive(self) -> None:
        """Copy from the device and wait for it, and so for all that the current stream did before."""
        if self._sent is not None:
            self.host.copy_(self._device_tensor, non_blocking=True)
            self._sent.record()
            self._sent.synchronize()
