"""PopArt: values of each task in units of its returns; when the units change, all values stay the same."""

import torch
from torch import Tensor, nn

from mtrl.networks.base import Parameters

GAIN, SHIFT = "pop_art.gain", "pop_art.shift"  # [T, 1] each, task heads of the critic
_SMALLEST_DEVIATION = 1e-2  # a task that has paid no reward yet must not divide by nothing


class PopArt(nn.Module):
    """Mean and deviation of all returns of each task so far; task t's value is deviation_t * out + mean_t.

    Where the statistics change, two numbers per task change such that every value stays what it was (Pop-Art,
    van Hasselt et al., arXiv 1602.07714; per task: Hessel et al., AAAI 2019, arXiv 1809.04474). The output is
    out = gain_t * network + shift_t: one head of the network serves all tasks, so that its own weights cannot
    be rescaled for each of them.

    Deviation from these papers: sample statistics of the whole run (Welford) instead of a moving average, as
    digests of TOPPO (arXiv 2605.11473) say; its own text on this could not be read. Their actors learn from
    advantages in the same units; here `ppo.advantages` decides that.

    Attributes:
        mean: [T], in units of reward.
        deviation: [T], at least 0.01.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        # Sums in double precision: they run over all returns of a run.
        self.count: Tensor = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.centre: Tensor = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.squares: Tensor = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))  # around the centre
        self.mean: Tensor = nn.Buffer(torch.zeros(num_tasks))
        self.deviation: Tensor = nn.Buffer(torch.ones(num_tasks))

    @staticmethod
    def heads(num_tasks: int) -> dict[str, Tensor]:
        """Return fresh heads of the critic: the identity."""
        return {GAIN: torch.ones(num_tasks, 1), SHIFT: torch.zeros(num_tasks, 1)}

    @torch.no_grad()
    def add(self, returns: Tensor, weight: Tensor, parameters: Parameters) -> None:
        """Take in returns [T, R], of which rows of weight 0 do not count, and keep every value what it was.

        `parameters` are views of the critic's; its heads are changed in place.
        """
        returns, weight = returns.double(), weight.double()
        number = weight.sum(1)
        total = self.count + number
        own = (returns * weight).sum(1) / number.clamp(min=1.0)
        inner = ((returns - own.unsqueeze(1)).square() * weight).sum(1)
        step = own - self.centre
        # Two samples' sums around their means, joined (Chan et al., 1979).
        self.squares.add_(inner + step.square() * self.count * number / total.clamp(min=1.0))
        self.centre.add_(step * number / total.clamp(min=1.0))
        self.count.copy_(total)
        before_mean, before = self.mean.double().clone(), self.deviation.double().clone()
        variance = self.squares / (total - 1.0).clamp(min=1.0)
        # The identity as long as a task has no returns at all.
        known = total > 0.0
        self.mean.copy_(torch.where(known, self.centre, before_mean))
        self.deviation.copy_(torch.where(known, variance.sqrt().clamp(min=_SMALLEST_DEVIATION), before))
        # In the numbers that are stored: with single precision these differ from the sums by its rounding.
        mean, deviation = self.mean.double(), self.deviation.double()
        gain, shift = parameters[GAIN], parameters[SHIFT]
        moved = (before * shift.double().squeeze(1) + before_mean - mean) / deviation
        gain.copy_((gain.double().squeeze(1) * before / deviation).unsqueeze(1))
        shift.copy_(moved.unsqueeze(1))

    def output(self, parameters: Parameters, value: Tensor) -> Tensor:
        """Return the critic's output [N, B] for its network's [N, B], with the heads of the same N tasks."""
        return parameters[GAIN] * value + parameters[SHIFT]

    def value(self, output: Tensor) -> Tensor:
        """Return values [T, B] in units of reward for outputs [T, B]."""
        return output * self.deviation.unsqueeze(1) + self.mean.unsqueeze(1)

    def target(self, returns: Tensor) -> Tensor:
        """Return what the critic's outputs should be for returns [T, B]: the inverse of `value`."""
        return (returns - self.mean.unsqueeze(1)) / self.deviation.unsqueeze(1)
