"""AdaTask: one Adam optimiser per task."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_choice, check_decay, check_number
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import column_blocks


class AdaTask(JacobianCombiner):
    """AdaTask: Adam with moments per task, so that no task's gradients set the step size of another task.

    Yang et al., AAAI 2023 (arXiv:2211.15055), algorithm 1 with Adam. m_t and v_t are the bias-corrected
    moments of task t's gradient; the step is the sum over tasks of m_t / (sqrt(v_t) + eps).

    Args:
        reduction: `sum` of the tasks' steps, as published (T Adam steps where tasks agree), or `mean`.
        beta1: Decay of the first moments.
        beta2: Decay of the second moments.
        eps: Added to the root of the second moments (authors' code: 1e-8).

    The direction is an optimiser's step: apply theta - lr * direction without another Adam and without
    clipping. Task heads use the optimiser as usual. Deviation from the authors' code: the moments [2, T, P]
    have the dtype of the Jacobian (float32 for half precision). No task is weighed: `weights` stays 1/T.
    """

    name = "adatask"
    papers = ("yang2023adatask",)
    multiplies_gradients = True
    preconditioned = True
    row_state = ("first", "second")

    def __init__(
        self,
        *,
        num_tasks: int,
        reduction: Literal["sum", "mean"] = "sum",
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        check_choice("reduction", reduction, ("sum", "mean"))
        self.reduction = reduction
        self.beta1 = check_decay("beta1", beta1)
        self.beta2 = check_decay("beta2", beta2)
        self.eps = check_number("eps", eps, low=1e-30)
        self.first: Tensor
        self.second: Tensor
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.float64))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        self.prepare(jacobian[0])
        self.step.add_(1.0)
        start = (1.0 - self.beta1**self.step).to(self.first.dtype)
        root = (1.0 - self.beta2**self.step).sqrt().to(self.first.dtype)
        parts = []
        for columns in column_blocks(jacobian):
            rows, first, second = (all_[:, columns] for all_ in (jacobian, self.first, self.second))
            rows = rows.to(first.dtype)
            first.lerp_(rows, 1.0 - self.beta1)
            second.mul_(self.beta2).addcmul_(rows, rows, value=1.0 - self.beta2)
            steps = first / second.sqrt().div_(root).add_(self.eps)
            parts.append(steps.sum(dim=0) if self.reduction == "sum" else steps.mean(dim=0))
        return (torch.cat(parts) / start).to(jacobian.dtype)
