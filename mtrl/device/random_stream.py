"""A random number generator of a device whose saved state can be loaded on another kind of device."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


class RandomStream:
    """A torch generator. A state that was saved on the same kind of device continues bit for bit.

    States of CPU and CUDA generators are not interchangeable. On the other kind of device the saved state
    seeds a new stream, the same one each time.

    Attributes:
        generator: for torch's functions.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self.generator = torch.Generator(device).manual_seed(seed)

    def state(self) -> dict[str, Any]:
        """Return the kind of device and the generator's state."""
        return {"device": self._device.type, "state": self.generator.get_state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`, or derive a new stream from the state of another kind of device."""
        saved = state["state"].cpu()
        if state["device"] == self._device.type:
            self.generator.set_state(saved)
        else:
            digest = hashlib.sha256(saved.numpy().tobytes()).digest()
            self.generator.manual_seed(int.from_bytes(digest[:7], "little"))
