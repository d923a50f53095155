"""SAC's losses per task: pure functions of networks' outputs, `[T, B, ...] -> [T]`, no coupling of tasks."""

from __future__ import annotations

from torch import Tensor

from mtrl.agents.sac.replay import Batch
from mtrl.networks.gaussian import SampledAction


def td_target(
    batch: Batch, next_action: SampledAction, next_q: Tensor, alpha: Tensor, gamma: float
) -> Tensor:
    """Soft Bellman target [T, B] (SAC, eq. 3 and 5).

    Args:
        batch: transitions; truncated ones have not_terminated 1 and are bootstrapped.
        next_action: actions sampled at the NEXT observations, with log-probabilities [T, B].
        next_q: target critics' values [2, T, B] at next observations and next_action.
        alpha: temperatures [T].
        gamma: discount per env step.
    """
    soft_value = next_q.amin(0) - alpha.unsqueeze(1) * next_action.log_prob
    return batch.reward + gamma * batch.not_terminated * soft_value


def critic_loss(q: Tensor, target: Tensor) -> Tensor:
    """Squared error of values [2, T, B] to target [T, B], mean over samples and twin critics: [T]."""
    return (q - target).square().mean(dim=(0, 2))


def actor_loss(sampled: SampledAction, q: Tensor, alpha: Tensor) -> Tensor:
    """Mean of alpha * log pi - min Q over each task's samples: [T] (SAC, eq. 7).

    Args:
        sampled: reparametrised actions at the batch's observations.
        q: critics' values [2, T, B] at these actions; gradients flow through the actions only.
        alpha: temperatures [T].
    """
    return (alpha.unsqueeze(1) * sampled.log_prob - q.amin(0)).mean(1)


def temperature_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Loss on log alpha [T] that moves the policy's entropy towards target_entropy (nats): [T].

    SAC (eq. 18) multiplies by alpha; like the Meta-World+ code this takes log alpha, whose gradient does not
    vanish with alpha.
    """
    return -log_alpha * (log_prob.detach().mean(1) + target_entropy)
