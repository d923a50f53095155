"""The tanh-squashed Gaussian policy, from the outputs of a network."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOG_STD_RANGE = (-20.0, 2.0)  # SAC's usual bounds, which the published multi-task runs use as well


class SampledAction(NamedTuple):
    """A reparametrised sample of the policy."""

    action: Tensor  # [T, B, A] in (-1, 1)
    log_prob: Tensor  # [T, B] in nats


def sample_action(outputs: Tensor, noise: Tensor) -> SampledAction:
    """Sample actions (SAC, eq. 11 and appendix C).

    Args:
        outputs: [T, B, 2A] of the actor's network: means, then logarithms of standard deviations.
        noise: [T, B, A], standard normal.
    """
    mean, log_std = outputs.chunk(2, dim=-1)
    log_std = log_std.clamp(*LOG_STD_RANGE)
    before_tanh = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), finite for every u.
    squash = 2 * (math.log(2.0) - before_tanh - F.softplus(-2 * before_tanh))
    return SampledAction(torch.tanh(before_tanh), (gaussian - squash).sum(-1))


def mode_action(outputs: Tensor) -> Tensor:
    """Deterministic action [T, B, A] for outputs [T, B, 2A]: tanh of the Gaussian's mean."""
    return torch.tanh(outputs.chunk(2, dim=-1)[0])
