"""MoDo: min-norm weights learned by one projected step per update, on independent batches."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice, check_number
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import gramian, inner_products, weighted_sum
from mtrl.combiners.solvers.hull import project


class MoDo(JacobianCombiner):
    """MoDo (double sampling): w <- simplex(w - gamma (J1 J2' w + rho w)), and the direction is J3' w.

    Chen et al., NeurIPS 2023 and JMLR 2024 (openreview yPkbdJxQ0o), as LibMTL has it. Products between the
    gradients of two independent batches are unbiased, and so is the direction, from a third batch. w starts
    equal. The authors' main code takes two batches and steps along (J1 + J2)' w; the third batch is an option
    of their toy example. Task heads step by the first batch alone (LibMTL: by the mean). The paper's text
    could not be read.

    Args:
        gamma: Step of the weights, which depends on the gradients' scale (LibMTL: 0.001, authors' code: 0.1).
        rho: Pull of the weights to equality (LibMTL: 0.1).
        batches: 3 independent batches, or 1 for all three Jacobians, which biases the weights.
    """

    name = "modo"
    papers = ("chen2023modo",)
    multiplies_gradients = True

    def __init__(
        self, *, num_tasks: int, gamma: float = 0.001, rho: float = 0.1, batches: Literal[1, 3] = 3
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.gamma = check_number("gamma", gamma, low=0.0)
        self.rho = check_number("rho", rho, low=0.0)
        check_choice("batches", batches, (1, 3))
        self.num_batches = batches
        self.w = nn.Buffer(torch.full((num_tasks,), 1.0 / num_tasks, dtype=torch.float64))

    def _combine_batches(self, jacobians: Sequence[Tensor]) -> Tensor:
        first, second, third = jacobians
        return self._step(inner_products(first, second), third)

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return self._step(gramian(jacobian), jacobian)

    def _step(self, products: Tensor, jacobian: Tensor) -> Tensor:
        slope = products.to(torch.float64) @ self.w + self.rho * self.w
        self.w.copy_(project(self.w - self.gamma * slope))
        self.last_weights.copy_(self.w)
        return weighted_sum(self.w, jacobian)
