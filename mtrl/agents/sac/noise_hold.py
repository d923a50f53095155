"""Exploration noise that each environment holds for a few steps, and that is larger in some. Knows no SAC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtrl.device.random_stream import RandomStream


class NoiseHold:
    """Standard normal noise of each copy, drawn anew after k steps with k ~ Zeta(exponent), k <= longest.

    At any step the noise is exactly standard normal, so that actions are draws from the policy; over time
    it is correlated, which moves a slow body further than independent noise (FlashSAC: exponent 2, 16 steps).

    Args:
        lead: environments, [T, E].
        action_dim: A.
        longest: steps at most.
        device: where the noise lives.
        seed: of the lengths and the noise.
        exponent: of P(k) ~ k^-exponent.
    """

    def __init__(
        self,
        lead: tuple[int, int],
        action_dim: int,
        *,
        longest: int,
        device: torch.device,
        seed: int,
        exponent: float = 2.0,
    ) -> None:
        self._stream = RandomStream(seed, device)
        lengths = torch.arange(1, longest + 1, device=device, dtype=torch.float32)
        self._probabilities = lengths**-exponent
        self._noise = torch.zeros(*lead, action_dim, device=device)
        self._remaining = torch.zeros(lead, dtype=torch.int64, device=device)

    def draw(self, noise: Tensor) -> Tensor:
        """Overwrite noise [T, E, A] with that of the next step; return it."""
        # A fixed number of draws whatever is due: nothing has to be read on the host.
        generator = self._stream.generator
        fresh = torch.empty_like(self._noise).normal_(generator=generator)
        count = self._remaining.numel()
        lengths = torch.multinomial(self._probabilities, count, replacement=True, generator=generator)
        due = self._remaining == 0
        self._noise.copy_(torch.where(due.unsqueeze(-1), fresh, self._noise))
        # A length drawn as index i stands for i + 1 steps, the present one among them.
        self._remaining.copy_(torch.where(due, lengths.view_as(due), self._remaining - 1))
        return noise.copy_(self._noise)

    def state_dict(self) -> dict[str, Any]:
        """The noise that is held, for how long, and the stream."""
        return {
            "noise": self._noise,
            "remaining": self._remaining,
            "stream": self._stream.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._noise.copy_(state["noise"])
        self._remaining.copy_(state["remaining"])
        self._stream.load_state(state["stream"])


def spread_over_copies(
    draw: Callable[[Tensor], Tensor], largest: float, copies: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return `draw` with the noise [T, E, A] of copy i multiplied by largest^(i / (copies - 1)).

    One policy at a low entropy stays on a plateau of the reward; beside copies that follow it, others look
    further. Two copies at least.
    """
    steps = torch.arange(copies, device=device) / (copies - 1)
    factors = torch.pow(largest, steps).unsqueeze(-1)
    return lambda noise: draw(noise).mul_(factors)
