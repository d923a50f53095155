"""Weights inverse to the temperatures: tasks whose policy is already certain weigh more."""

import torch
from torch import Tensor

from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners.base import JacobianCombiner


class InverseAlpha(JacobianCombiner):
    """Weights softmax(-log alpha_t) for SAC's temperatures alpha_t, one per task.

    The balance of losses of Yang et al., NeurIPS 2020 (arXiv:2003.13661, soft modularisation; its text could
    not be read), as in its code (Soft-Module) and the Meta-World+ authors': task t weighs (1 / alpha_t) /
    sum_s (1 / alpha_s), so a common factor changes nothing. Their factor T cancels in their mean over the
    samples of all tasks. The temperatures are those before their own step, as in Meta-World+; Soft-Module
    takes those after it.

    `direction` reads `jacobian_at.temperatures` [T], which an agent with temperatures provides, and takes one
    weighted backward pass.
    """

    name = "inverse_alpha"
    papers = ("yang2020softmod",)
    credit = "The paper has these weights beside its networks; it could not be read."
    jacobians = 0
    needs = "the tasks' temperatures (`jacobian_at.temperatures` [T]), which SAC has"

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P] for `jacobian_at.temperatures` [T].

        Raises:
            ValueError: there are no temperatures.
        """
        temperatures: Tensor | None = getattr(jacobian_at, "temperatures", None)
        if temperatures is None:
            raise ValueError(f"{self.name} needs {self.needs_also}; found none.")
        weights = torch.softmax(-temperatures.detach().to(torch.float64).log(), dim=0)
        self.last_weights.copy_(weights)
        return jacobian_at.weighted(lambda losses: weights)

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        raise ValueError(f"{self.name} needs {self.needs_also}; found none.")
