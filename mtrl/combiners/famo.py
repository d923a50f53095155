"""FAMO: learns task weights from how much each loss fell in the last step."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners._state import Learned
from mtrl.combiners.base import LossCombiner


class FAMO(PositiveLosses, LossCombiner):
    """FAMO (fast adaptive multi-task optimisation): aims at the same rate of decrease for all log-losses.

    Liu et al., NeurIPS 2023 (arXiv:2306.03792), algorithm 1. With z = softmax(xi), task t weighs c z_t /
    loss_t, where c makes the weights sum to 1. After the step, xi takes an Adam step against the gradient of
    sum_t z_t fall_t for constants fall_t = log(loss_t before) - log(loss_t after), both on the same batch.

    Args:
        lr: Learning rate of xi (authors' RL runs: 0.025).
        weight_decay: Pull of xi to zero, which is equal z (authors' RL runs: 0.01).

    A step costs one backward and one more forward pass, no Jacobian, and needs `after_step`. Deviations from
    the authors' RL code: it applies FAMO to the critic alone, where losses are positive, and multiplies by
    the sum of z_t / loss_t instead of dividing, an error of scale. A loss below 1e-8 counts as 1e-8 (the code
    adds 1e-8). With `shift` = `minimum` FAMO follows absolute decreases and depends on the losses' scales.
    """

    name = "famo"
    papers = ("liu2023famo",)
    looks_again = True

    def __init__(
        self,
        *,
        num_tasks: int,
        lr: float = 0.025,
        weight_decay: float = 0.01,
        shift: Literal["none", "minimum"] = "none",
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.xi = Learned(
            num_tasks,
            lr=check_number("lr", lr, low=0.0),
            weight_decay=check_number("weight_decay", weight_decay, low=0.0),
        )
        self.before = nn.Buffer(torch.ones(num_tasks, dtype=torch.float64))

    def _weights(self, losses: Tensor) -> Tensor:
        self.before.copy_(losses.detach())
        self.origin.lower(losses)
        return torch.softmax(self.xi.value - self.origin.logarithms(losses), dim=0)

    def _after_step(self, losses: Tensor) -> None:
        self.origin.lower(losses)
        fall = self.origin.logarithms(self.before) - self.origin.logarithms(losses)
        z = torch.softmax(self.xi.value, dim=0)
        # z * (fall - z @ fall), the derivative of z @ fall by xi, in one launch.
        self.xi.update(torch.ops.aten._softmax_backward_data(fall, z, 0, z.dtype))
