"""One network's descent step: losses in, combined direction taken. Knows no agent."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner, GramCombiner, LossCombiner
from mtrl.combiners.solvers.gramian import gramian, weighted_sum
from mtrl.gradients.flat_parameters import FlatParameters
from mtrl.gradients.jacobian import LossFunction, TaskGradients


class StepReport(NamedTuple):
    """What one descent step of a network leaves behind, as device tensors."""

    losses: Tensor  # [T], 0 for tasks that were not evaluated
    evaluated: Tensor  # [T] bool
    gradient_norm: Tensor  # 0-dim, after combining, before clipping
    task_norms: Tensor | None  # [T], lengths of the tasks' gradients; None: the method never forms them


class Descent(nn.Module):
    """One network with its optimiser and its own combiner.

    A preconditioned direction is taken as it is, theta - lr * direction, neither clipped nor passed through
    Adam; task heads have Adam all the same.

    Attributes:
        failures: [T] bool, on the device: the tasks that made a step non-finite since the start. Such a step
            is taken like any other and what it leaves may be garbage: whoever steps looks here before
            saving anything.
    """

    def __init__(
        self, parameters: FlatParameters, combiner: Combiner, *, lr: float, eps: float, max_norm: float | None
    ) -> None:
        super().__init__()
        self.flat = parameters
        self.combiner = combiner
        self.max_norm = None if combiner.preconditioned else max_norm
        self._gradients = TaskGradients(parameters, combiner.num_tasks)
        combiner.prepare(self._gradients.parameters)
        self.optimizer = make_adam(parameters.vector, lr=lr, eps=eps)
        self.register_buffer("failures", torch.zeros(combiner.num_tasks, dtype=torch.bool))
        self.failures: Tensor

    @property
    def jacobian_bytes(self) -> int:
        """Bytes of the Jacobians that exist at once during a step."""
        combiner = self.combiner
        if isinstance(combiner, LossCombiner):
            return 0
        return (
            combiner.jacobians * combiner.num_tasks * self.flat.num_shared * self.flat.vector.element_size()
        )

    def step(self, loss_function: LossFunction, temperatures: Tensor | None = None) -> StepReport:
        """Take one descent step; `temperatures` [T] are for methods that read them."""
        combiner, gradients = self.combiner, self._gradients
        gradients.temperatures = temperatures
        gradients.start(loss_function)
        with combiner.unchecked():
            shared = self._direction(combiner)
        gradient = torch.cat((shared, gradients.head_gradient))
        norm = clip_by_norm(gradient, self.max_norm)
        self._note_failure(gradients.finite, torch.isfinite(norm))
        if combiner.preconditioned:
            self._plain_step(gradient[: len(shared)])
        adam_step(self.optimizer, self.flat.vector, gradient)
        if combiner.looks_again:
            self._look_again(loss_function)
        return StepReport(gradients.losses, gradients.evaluated, norm, gradients.norms)

    def _direction(self, combiner: Combiner) -> Tensor:
        if isinstance(combiner, LossCombiner):
            return self._gradients.weighted(combiner.weights)
        if isinstance(combiner, GramCombiner) and combiner.gramian_suffices:
            # The Gramian's diagonal gives the tasks' norms, which would else take a pass over the Jacobian.
            jacobian = self._gradients.evaluate()
            gram = gramian(jacobian)
            self._gradients.note_norms(gram.diagonal().sqrt())
            return weighted_sum(combiner.weights(gram), jacobian)
        return combiner.direction(self._gradients)

    def _plain_step(self, direction: Tensor) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        self.flat.vector.detach()[: len(direction)].sub_(lr * direction)
        direction.zero_()  # Adam, which steps next for the heads, leaves a parameter without gradient alone

    @torch.no_grad()
    def _look_again(self, loss_function: LossFunction) -> None:
        losses = loss_function(self.flat.named(), 0, None)
        # After a failed step everything is non-finite: that names nobody new.
        self.failures |= ~torch.isfinite(losses) & ~self.failures.any()
        with self.combiner.unchecked():
            self.combiner.after_step(losses)

    def _note_failure(self, finite: Tensor, whole: Tensor) -> None:
        # With no single culprit every task is named: better too many names than none.
        self.failures |= ~finite | (finite.all() & ~whole)


def clip_by_norm(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scale a vector in place to Euclidean norm at most max_norm; return its norm before that (0-dim)."""
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if max_norm is not None and math.isfinite(max_norm):
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def make_adam(parameter: Tensor, *, lr: float, eps: float = 1e-8) -> torch.optim.Adam:
    """Return fused Adam for one tensor; on CUDA fit for a graph."""
    if not parameter.is_cuda:
        return torch.optim.Adam([parameter], lr=lr, eps=eps, fused=True)
    step_size = torch.tensor(lr, device=parameter.device)  # a graph reads a tensor anew at each replay
    return torch.optim.Adam([parameter], lr=step_size, eps=eps, fused=True, capturable=True)


def set_lr(optimizer: torch.optim.Adam, lr: float) -> None:
    """Change the step size, also of steps that a CUDA graph has captured."""
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def adam_step(optimizer: torch.optim.Adam, parameter: Tensor, gradient: Tensor) -> None:
    """Take a step of Adam along a gradient of the parameter's shape."""
    parameter.grad = gradient
    optimizer.step()
    parameter.grad = None
