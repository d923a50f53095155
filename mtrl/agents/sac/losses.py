"""SAC's losses per task: pure functions of networks' outputs, `[T, B, ...] -> [T]`, no coupling of tasks."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mtrl.agents.sac.replay import Batch
from mtrl.agents.sac.value_distribution import cross_entropy
from mtrl.networks.gaussian import SampledAction


def td_target(
    batch: Batch, next_action: SampledAction, next_q: Tensor, alpha: Tensor, gamma: float
) -> Tensor:
    """Soft Bellman target, shaped as next_q (SAC, eq. 3 and 5).

    Args:
        batch: transitions; truncated ones have not_terminated 1 and are bootstrapped.
        next_action: actions sampled at the NEXT observations, with log-probabilities [T, B].
        next_q: target critics' value [T, B] at next observations and next_action, or [N, T, B] of N atoms.
        alpha: temperatures [T].
        gamma: discount per env step, where the batch has none of its own.
    """
    soft_value = next_q - alpha.unsqueeze(1) * next_action.log_prob
    discount = gamma if batch.discount is None else batch.discount
    return batch.reward + discount * batch.not_terminated * soft_value


def squared_error(q: Tensor, target: Tensor) -> Tensor:
    """Squared error of values [2, T, B] to target [T, B], mean over samples and twin critics: [T]."""
    return (q - target).square().mean(dim=(0, 2))


def huber_error(q: Tensor, target: Tensor) -> Tensor:
    """As `squared_error`, halved and linear beyond errors of 1."""
    return F.huber_loss(q, target.expand_as(q), reduction="none").mean(dim=(0, 2))


def distribution_error(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits [2, T, B, N] relative to target [T, B, N], mean as in `squared_error`: [T]."""
    return cross_entropy(logits, target).mean(dim=(0, 2))


def actor_loss(sampled: SampledAction, q: Tensor, alpha: Tensor) -> Tensor:
    """Mean of alpha * log pi - Q over each task's samples: [T] (SAC, eq. 7).

    Args:
        sampled: reparametrised actions at the batch's observations.
        q: the critics' value [T, B] at these actions; gradients flow through the actions only.
        alpha: temperatures [T].
    """
    return (alpha.unsqueeze(1) * sampled.log_prob - q).mean(1)


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Loss on log alpha [T] that moves the policy's entropy towards target_entropy (nats): [T].

    SAC (eq. 18) multiplies by alpha; like the Meta-World+ code this takes log alpha, whose gradient does not
    vanish with alpha.
    """
    return -log_alpha * (log_prob.detach().mean(1) + target_entropy)
