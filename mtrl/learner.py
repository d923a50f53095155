"""One network's descent step: losses in, combined direction taken, or nothing changed. Knows no SAC."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner, LossCombiner
from mtrl.gradients import FlatParameters, LossFunction, TaskGradients, all_finite, clip_by_norm


class StepReport(NamedTuple):
    """What one descent step of a network leaves behind, as device tensors."""

    losses: Tensor  # [T], 0 for tasks that were not evaluated
    evaluated: Tensor  # [T] bool
    ok: Tensor  # 0-dim bool: the step was finite and has been taken
    gradient_norm: Tensor  # 0-dim, after combining, before clipping


class Learner(nn.Module):
    """One network with its optimiser and its own combiner.

    A preconditioned direction is taken as it is, theta - lr * direction, neither clipped nor passed through
    Adam; task heads have Adam all the same.
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
        # Fused Adam skips a step on the device when found_inf is 1: no host needs to look at the gradient.
        self.optimizer = torch.optim.Adam([parameters.vector], lr=lr, eps=eps, fused=True)
        self.register_buffer("failures", torch.zeros(combiner.num_tasks, dtype=torch.bool))
        self.failures: Tensor

    def step(self, loss_function: LossFunction) -> StepReport:
        """Take one descent step; a non-finite one changes nothing but `failures` [T]."""
        combiner, gradients = self.combiner, self._gradients
        before = _copies(combiner)
        gradients.start(loss_function)
        with combiner.unchecked():
            if isinstance(combiner, LossCombiner):
                shared = gradients.weighted(combiner.weights)
            else:
                shared = combiner.direction(gradients)
        gradient = torch.cat((shared, gradients.head_gradient))
        norm = clip_by_norm(gradient, self.max_norm)
        ok = all_finite(norm, gradients.losses)
        _restore_unless(ok, before)
        self._note_failure(ok, gradients.finite)
        if combiner.preconditioned:
            self._plain_step(gradient[: len(shared)], ok)
        masked_step(self.optimizer, self.flat.vector, gradient, ok)
        if combiner.looks_again:
            self._look_again(loss_function, ok)
        return StepReport(gradients.losses, gradients.evaluated, ok, norm)

    def _plain_step(self, direction: Tensor, ok: Tensor) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        self.flat.vector.detach()[: len(direction)].sub_(lr * torch.where(ok, direction, 0.0))
        direction.zero_()  # Adam, which steps next for the heads, leaves a parameter without gradient alone

    @torch.no_grad()
    def _look_again(self, loss_function: LossFunction, ok: Tensor) -> None:
        losses = loss_function(self.flat.named(), 0, None)
        before = _copies(self.combiner)
        with self.combiner.unchecked():
            self.combiner.after_step(losses)
        _restore_unless(ok & all_finite(losses), before)

    def _note_failure(self, ok: Tensor, finite: Tensor) -> None:
        # With no single culprit every task is named: better too many names than none.
        culprits = torch.where((~finite).any(), ~finite, torch.ones_like(finite))
        self.failures |= culprits & ~ok


def masked_step(optimizer: torch.optim.Adam, parameter: Tensor, gradient: Tensor, ok: Tensor) -> None:
    """Take a step of fused Adam if the 0-dim bool `ok` is true, decided on the device."""
    parameter.grad = gradient
    optimizer.grad_scale = None  # type: ignore[attr-defined]  # read by the fused step, as GradScaler sets it
    optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
    optimizer.step()
    parameter.grad = None


def _copies(combiner: Combiner) -> list[tuple[Tensor, Tensor]]:
    return [(value, value.clone()) for value in combiner.buffers()]


def _restore_unless(ok: Tensor, copies: list[tuple[Tensor, Tensor]]) -> None:
    for value, old in copies:
        value.copy_(torch.where(ok, value, old))
