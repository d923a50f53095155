"""Loss formulae against numbers worked out by hand."""

from __future__ import annotations

import math

import torch

from mtrl.agents.sac.losses import Atoms, CriticOutputs, actor_loss, td_target, temperature_gradient
from mtrl.agents.sac.replay import Batch
from mtrl.networks.gaussian import SampledAction


def _batch(reward: list[list[float]], not_terminated: list[list[float]]) -> Batch:
    zeros = torch.zeros(2, 2, 1)
    return Batch(zeros, zeros, torch.tensor(reward), zeros, torch.tensor(not_terminated))


def test_td_target_subtracts_entropy_and_masks_only_termination() -> None:
    batch = _batch([[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [1.0, 1.0]])
    log_prob = torch.tensor([[-1.0, -2.0], [0.5, 0.0]])
    next_q = torch.tensor([[8.0, 10.0], [7.0, -1.0]])
    target = td_target(
        batch, SampledAction(torch.zeros(2, 2, 1), log_prob), next_q, torch.tensor([0.5, 2.0]), 0.9
    )
    # 1 + .9 (8 + .5), terminated: 2, 3 + .9 (7 - 1), 4 + .9 (-1 - 0)
    torch.testing.assert_close(target, torch.tensor([[8.65, 2.0], [8.4, 3.1]]))


def test_critic_loss_averages_squared_errors_over_samples_and_both_critics() -> None:
    q = torch.tensor([[[2.0, 2.0], [4.0, 0.0]], [[4.0, 4.0], [8.0, 0.0]]])  # two critics, two tasks
    target = torch.tensor([[1.0, 3.0], [4.0, 1.0]])
    # task 0: q1 = 2, 2; q2 = 4, 4; errors 1, 1, 9, 1. task 1: q1 = 4, 0; q2 = 8, 0; errors 0, 1, 16, 1.
    critic = CriticOutputs("squared", "min", Atoms(-1.0, 1.0, 2))
    torch.testing.assert_close(critic.error(q, target), torch.tensor([3.0, 4.5]))


def test_actor_loss_weighs_log_probability_by_each_tasks_temperature() -> None:
    log_prob, q = torch.tensor([2.0, 1.0]), torch.tensor([2.5, -1.5])
    # .5 * 2 - 2.5 and 2 * 1 + 1.5
    torch.testing.assert_close(actor_loss(log_prob, q, torch.tensor([0.5, 2.0])), torch.tensor([-1.5, 3.5]))


def test_temperature_rises_while_entropy_is_below_its_target() -> None:
    log_alpha = torch.tensor([0.0, math.log(0.1)], requires_grad=True)
    # Entropies -(-1) = 1 and 6; target 4 nats: the first must rise, the second fall, whatever alpha is.
    log_prob = torch.tensor([-1.0, -6.0])
    (expected,) = torch.autograd.grad((-log_alpha * (log_prob + 4.0)).sum(), log_alpha)
    found = temperature_gradient(log_prob, target_entropy=4.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, torch.tensor([-3.0, 2.0]))
