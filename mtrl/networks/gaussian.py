"""The Gaussian policy, squashed into [-1, 1], from the outputs of a network."""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

LOG_STD_RANGE = (-20.0, 2.0)  # SAC's usual bounds, which the published multi-task runs use as well
Squash = Literal["tanh", "clip"]  # how a number becomes an action in [-1, 1]


class SampledAction(NamedTuple):
    """A reparametrised sample of the policy."""

    action: Tensor  # [T, B, A] in (-1, 1)
    log_prob: Tensor  # [T, B] in nats


def sample_action(outputs: Tensor, noise: Tensor) -> SampledAction:
    """Sample actions (SAC, arXiv 1801.01290, eq. 11 and appendix C).

    Args:
        outputs: [T, B, 2A] of the actor's network: means, then logarithms of standard deviations.
        noise: [T, B, A], standard normal.
    """
    return SampledAction(*_Sample.apply(outputs, noise))  # type: ignore[no-untyped-call]


def noisy_action(outputs: Tensor, noise: Tensor) -> Tensor:
    """The action of `sample_action` alone; without gradients."""
    return raw_action(outputs, noise).tanh_()


def mode_action(outputs: Tensor, squash: Squash = "tanh") -> Tensor:
    """Deterministic action [T, B, A] for outputs [T, B, 2A]: the Gaussian's mean, squashed."""
    return squashed(outputs.chunk(2, dim=-1)[0], squash)


def squashed(raw: Tensor, squash: Squash) -> Tensor:
    """Return actions in [-1, 1] for samples of the Gaussian or its mean."""
    return torch.tanh(raw) if squash == "tanh" else raw.clamp(-1.0, 1.0)


def raw_action(outputs: Tensor, noise: Tensor) -> Tensor:
    """Sample the Gaussian itself, [T, B, A]; takes what `sample_action` takes."""
    mean, log_std = _parts(outputs)
    return torch.addcmul(mean, log_std.exp(), noise)


def raw_log_prob(outputs: Tensor, raw: Tensor) -> Tensor:
    """Log-probability density [T, B] of samples [T, B, A] of the Gaussian, in nats.

    A ratio of two policies' densities is the same before and after squashing, whose factor cancels.
    """
    mean, log_std = _parts(outputs)
    distance = (raw - mean) * (-log_std).exp()
    return (-0.5 * distance.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def raw_entropy(outputs: Tensor) -> Tensor:
    """Entropy [T, B] of the Gaussian before squashing, in nats."""
    return (_parts(outputs)[1] + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def deviation(outputs: Tensor) -> Tensor:
    """Standard deviations [T, B, A] of the Gaussian."""
    return _parts(outputs)[1].exp()


def _parts(outputs: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_std = outputs.chunk(2, dim=-1)
    return mean, log_std.clamp(*LOG_STD_RANGE)


def bounded_log_std(mean: Tensor, raw: Tensor) -> Tensor:
    """Return the outputs [..., 2A] of an actor whose log deviations run smoothly through [-10, 2].

    They are -10 + 6 (1 + tanh raw), as in BRC, SimBa and SimbaV2.
    """
    return torch.cat((mean, -10.0 + 6.0 * (1.0 + torch.tanh(raw))), dim=-1)


class _Sample(torch.autograd.Function):
    """`sample_action` with its derivatives written out: a third of autograd's operations, each a GPU launch.

    With u = mean + std * noise and a = tanh(u), each action dimension adds to log pi
    -noise^2 / 2 - log(2 pi) / 2 - log std - log(1 - a^2), and log(1 - a^2) = 2 log 2 - 2 log(e^u + e^-u),
    which is finite for every u. So d log pi / du = 2 a, and log std has a slope of -1 besides.
    """

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = outputs.chunk(2, dim=-1)
        log_std = raw.clamp(*LOG_STD_RANGE)
        std = log_std.exp()
        before_tanh = torch.addcmul(mean, std, noise)
        action = torch.tanh(before_tanh)
        ctx.save_for_backward(raw, std, noise, action)
        minus = torch.sub(log_std, torch.logaddexp(before_tanh, -before_tanh), alpha=2.0)
        minus = torch.addcmul(minus, noise, noise, value=0.5).sum(-1)
        constant = noise.shape[-1] * (0.5 * math.log(2.0 * math.pi) + 2.0 * math.log(2.0))
        return action, torch.rsub(minus, -constant)

    @staticmethod
    def backward(ctx: Any, of_action: Tensor, of_log_prob: Tensor) -> tuple[Tensor, None]:
        raw, std, noise, action = ctx.saved_tensors
        of_log_prob = of_log_prob.unsqueeze(-1)
        of_mean = torch.addcmul(
            torch.ops.aten.tanh_backward(of_action, action), action, of_log_prob, value=2.0
        )
        of_log_std = (of_mean * std).mul_(noise).sub_(of_log_prob)
        # Nothing passes where log std is clamped.
        of_raw = torch.ops.aten.hardtanh_backward(of_log_std, raw, *LOG_STD_RANGE)
        return torch.cat((of_mean, of_raw), dim=-1), None
