"""A scale of rewards per task from the range of its discounted returns. Knows no SAC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SMALLEST = 1e-3  # of the scale, in units of reward: a task that has paid nothing yet stays as it is


class ReturnScale:
    """What rewards of a task are divided by so that its returns lie within +-bound.

    Every copy of every task keeps a running return G <- r + gamma G, begun anew with each episode. The scale
    of a task is max(std G, max |G| / bound), over all steps of all its copies so far: returns deviate by
    about 1 and never leave the bound (the normalisers of FastTD3, arXiv 2505.22642, and FlashSAC). Unlike
    a deviation of single rewards it does not blow up a first success after thousands of steps without one.

    Args:
        num_tasks: T.
        envs_per_task: E.
        gamma: discount per env step.
        bound: largest scaled return.
        device: where the scale is used.
    """

    def __init__(
        self, *, num_tasks: int, envs_per_task: int, gamma: float, bound: float, device: torch.device
    ) -> None:
        self._gamma, self._bound = gamma, bound
        # Double precision: sums of squares over 1e9 steps.
        zeros = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self._state = {
            "running": torch.zeros(num_tasks, envs_per_task, dtype=torch.float64, device=device),
            "count": zeros.clone(),
            "sum": zeros.clone(),
            "sum_of_squares": zeros.clone(),
            "largest": zeros.clone(),
        }
        self.scale = torch.ones(num_tasks, device=device)  # [T]

    def add(self, reward: Tensor, ended: Tensor, lost: Tensor | None = None) -> None:
        """Count one vector step: reward, end of episode and rows that are no transition, each [T, E]."""
        state = self._state
        device = self.scale.device
        running = state["running"].mul_(self._gamma).add_(reward.to(device))
        ended = ended.to(device)
        if lost is None:
            counted, known = running, float(running.shape[1])
        else:
            valid = ~lost.to(device)
            counted, known = running * valid, valid.sum(1)  # type: ignore[assignment]
            ended = ended | ~valid
        state["count"] += known
        state["sum"] += counted.sum(1)
        state["sum_of_squares"] += counted.square().sum(1)
        torch.maximum(state["largest"], counted.abs().amax(1), out=state["largest"])
        running.masked_fill_(ended, 0.0)
        mean = state["sum"] / state["count"].clamp(min=1)
        variance = state["sum_of_squares"] / state["count"].clamp(min=1) - mean.square()
        scale = torch.maximum(variance.clamp(min=0).sqrt(), state["largest"] / self._bound)
        self.scale.copy_(scale.clamp(min=_SMALLEST))

    def state_dict(self) -> dict[str, Any]:
        """Running returns, their statistics, and the scale."""
        return {**self._state, "scale": self.scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        for name, value in (*self._state.items(), ("scale", self.scale)):
            value.copy_(state[name])
