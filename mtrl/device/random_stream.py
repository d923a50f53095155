"""A generator of random numbers on a device, whose state can be taken up on another kind of device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


class RandomStream:
    """A torch generator; on the kind of device that its state was saved on it goes on bit for bit.

    Generators of CPU and CUDA count differently: on the other kind the stream is a fresh one, seeded from
    the saved state, which is as random, and the same again each time.

    Attributes:
        generator: for torch's functions.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def state(self) -> dict[str, Any]:
        """Return kind of device and state."""
        return {"device": self._device.type, "state": self.generator.get_state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`, or derive a fresh stream from that of another kind of device."""
        saved = state["state"].cpu()
        if state["device"] == self._device.type:
            self.generator.set_state(saved)
        else:
            digest = hashlib.sha256(saved.numpy().tobytes()).digest()
            self.generator.manual_seed(int.from_bytes(digest[:7], "little"))
