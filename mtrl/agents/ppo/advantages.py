"""Advantages and returns of a rollout. Pure functions; T tasks, N vector steps, E copies of each task."""

import torch
from torch import Tensor


def advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    *,
    terminated: Tensor,
    ended: Tensor,
    lost: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimates [T, N, E] (GAE, arXiv 1506.02438, equation 16).

    An episode that the time limit ended is bootstrapped from its true final observation, as an episode that
    goes on; only a termination is worth nothing afterwards. Published multi-task PPO treats both as
    terminations. The sum over time stops at every end of an episode. A lost row is no transition: its
    advantage is 0, and the row before it bootstraps from the value of the observation that it led to.

    Args:
        reward: [T, N, E].
        value: of the observations, [T, N, E].
        next_value: of the true successors, [T, N, E].
        terminated: bool, the task itself ended the episode.
        ended: bool, the task or the time limit ended it.
        lost: bool, the environment was restarted.
        gamma: discount per env step.
        gae_lambda: 0: one-step temporal differences; 1: discounted sums of rewards minus the value.
    """
    bootstrap = torch.where(terminated, torch.zeros_like(next_value), next_value)
    error = torch.where(lost, torch.zeros_like(value), reward + gamma * bootstrap - value)
    carried = (~(ended | lost)).to(value.dtype) * (gamma * gae_lambda)
    # Along time from the last step to the first: each depends on the one after it.
    running, found = torch.zeros_like(value[:, 0]), []
    for error_now, carried_now in zip(reversed(error.unbind(1)), reversed(carried.unbind(1)), strict=True):
        running = error_now + carried_now * running
        found.append(running)
    return torch.stack(found[::-1], dim=1)


def standardised(values: Tensor, weight: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Return values minus their mean, over their deviation, over the dimensions `dim`.

    Rows of weight 0 do not count and become 0; other rows have weight 1. The deviation is that of a sample,
    as `torch.std` computes it.
    """
    count = weight.sum(dim, keepdim=True)
    centred = (values - (values * weight).sum(dim, keepdim=True) / count.clamp(min=1.0)) * weight
    variance = centred.square().sum(dim, keepdim=True) / (count - 1.0).clamp(min=1.0)
    return centred / (variance.sqrt() + 1e-8)


def explained_variance(value: Tensor, returns: Tensor, weight: Tensor) -> Tensor:
    """Return 1 - Var(returns - value) / Var(returns) of each task [T], over rows [T, R] of weight 1.

    1: the values predict the returns; 0: as good as one constant. NaN where returns vary by rounding alone.
    """
    count = weight.sum(1, keepdim=True).clamp(min=1.0)

    def variance(numbers: Tensor) -> Tensor:
        mean = (numbers * weight).sum(1, keepdim=True) / count
        return ((numbers - mean).square() * weight).sum(1)

    whole = variance(returns)
    # Returns are sums of advantages and values, which leave a rounding error where they cancel.
    rounding = ((value.square() + returns.square()) * weight).sum(1) * 1e-10
    return 1.0 - variance(returns - value) / torch.where(whole > rounding, whole, torch.nan)
