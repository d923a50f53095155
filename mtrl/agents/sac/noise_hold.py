"""Exploration noise: held for a few steps, and of another size in each environment. Knows no SAC."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mtrl.device.random_stream import RandomStream


class NoiseHold:
    """Standard normal noise that each environment keeps for k steps, P(k) ~ 1 / k^2, k <= longest.

    At any one step the noise is exactly standard normal, so actions are draws from the policy. Over time it
    is correlated, which moves a slow body further than independent noise does (FlashSAC: at most 16 steps).

    Args:
        lead: T and E.
        action_dim: A.
        longest: largest k.
        device: of the noise.
        seed: of the lengths and the noise.
    """

    def __init__(
        self,
        lead: tuple[int, int],
        action_dim: int,
        *,
        longest: int,
        device: torch.device,
        seed: int,
    ) -> None:
        self._stream = RandomStream(seed, device)
        lengths = torch.arange(1, longest + 1, device=device, dtype=torch.float32)
        self._probabilities = lengths**-2.0
        self._noise = torch.zeros(*lead, action_dim, device=device)
        self._single_draws = device.type == "cpu"
        self._remaining = torch.zeros(lead, dtype=torch.int64, device=device)

    def draw(self, noise: Tensor) -> Tensor:
        """Overwrite noise [T, E, A] with the noise of the next step, and return it."""
        # All environments draw at every step, due or not: what is due need not be read on the host.
        generator = self._stream.generator
        fresh = torch.empty_like(self._noise).normal_(generator=generator)
        count = self._remaining.numel()
        # On CUDA `multinomial` reads the host for a single sample, so a second one is drawn and left out.
        drawn = count if self._single_draws else max(count, 2)
        lengths = torch.multinomial(self._probabilities, drawn, replacement=True, generator=generator)[:count]
        due = self._remaining == 0
        self._noise.copy_(torch.where(due.unsqueeze(-1), fresh, self._noise))
        # Index i stands for i + 1 steps, of which this one is the first.
        self._remaining.copy_(torch.where(due, lengths.view_as(due), self._remaining - 1))
        return noise.copy_(self._noise)

    def state_dict(self) -> dict[str, Any]:
        """Return the noise, the number of steps that it stays, and the stream."""
        return {"noise": self._noise, "remaining": self._remaining, "stream": self._stream.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._noise.copy_(state["noise"])
        self._remaining.copy_(state["remaining"])
        self._stream.load_state(state["stream"])


def spread_over_copies(
    draw: Callable[[Tensor], Tensor], largest: float, copies: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return `draw` with the noise [T, E, A] of copy i multiplied by largest^(i / (copies - 1)).

    A policy of low entropy stays on a plateau of the reward. Copies with larger noise look further, while the
    others follow the policy. Needs two copies or more.
    """
    steps = torch.arange(copies, device=device) / (copies - 1)
    factors = torch.pow(largest, steps).unsqueeze(-1)
    return lambda noise: draw(noise).mul_(factors)
