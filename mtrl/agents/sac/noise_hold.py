"""Exploration noise: held for a few steps, and of another size in each copy of a task. Knows no SAC."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtrl.device.random_stream import RandomStream


class NoiseHold:
    """Standard normal noise that each environment keeps for k steps, P(k) ~ 1 / k^2, k <= longest.

    At any one step the noise is exactly standard normal, so actions are draws from the policy. Over time it
    is correlated, which moves a slow body further than independent noise does (FlashSAC: at most 16 steps,
    one k for all environments).

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
        self._probabilities = torch.arange(1, longest + 1, dtype=torch.float32) ** -2.0
        shares = np.arange(1, longest + 1) ** -2.0
        reached = np.cumsum(shares / shares.sum())[:-1]  # P(k <= 1), ..., P(k <= longest - 1)
        self._bounds = torch.as_tensor(reached, dtype=torch.float32, device=device)
        self._noise = torch.zeros(*lead, action_dim, device=device)
        self._remaining = torch.zeros(lead, dtype=torch.int64, device=device)

    def draw(self, noise: Tensor) -> Tensor:
        """Overwrite noise [T, E, A] with the noise of the next step, and return it."""
        # All environments draw at every step, due or not: what is due need not be read on the host.
        generator = self._stream.generator
        fresh = torch.empty_like(self._noise).normal_(generator=generator)
        lengths = self._lengths()
        due = self._remaining == 0
        self._noise.copy_(torch.where(due.unsqueeze(-1), fresh, self._noise))
        # Of the i + 1 steps this one is the first.
        self._remaining.copy_(torch.where(due, lengths.view_as(due), self._remaining - 1))
        return noise.copy_(self._noise)

    def _lengths(self) -> Tensor:
        """Draw an index for each environment; i stands for i + 1 steps."""
        count, generator = self._remaining.numel(), self._stream.generator
        if self._remaining.device.type == "cpu":
            return torch.multinomial(self._probabilities, count, replacement=True, generator=generator)
        # On CUDA `multinomial` sums in no fixed order, which `train.deterministic` refuses.
        uniform = torch.rand(count, generator=generator, device=self._remaining.device)
        return indices(uniform, self._bounds)

    def state_dict(self) -> dict[str, Any]:
        """Return the noise, the number of steps that it stays, and the stream."""
        return {"noise": self._noise, "remaining": self._remaining, "stream": self._stream.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        self._noise.copy_(state["noise"])
        self._remaining.copy_(state["remaining"])
        self._stream.load_state(state["stream"])


def indices(uniform: Tensor, bounds: Tensor) -> Tensor:
    """Return for numbers in [0, 1) how many of the rising `bounds` each has reached."""
    return torch.searchsorted(bounds, uniform, right=True)


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
