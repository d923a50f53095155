"""One network's descent step: losses in, combined direction taken, or nothing changed. Knows no SAC."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner, GramCombiner, LossCombiner
from mtrl.combiners.solvers.gramian import gramian
from mtrl.gradients.flat_parameters import FlatParameters
from mtrl.gradients.jacobian import LossFunction, TaskGradients, all_finite, clip_by_norm


class StepReport(NamedTuple):
    """What one descent step of a network leaves behind, as device tensors."""

    losses: Tensor  # [T], 0 for tasks that were not evaluated
    evaluated: Tensor  # [T] bool
    ok: Tensor  # 0-dim bool: the step was finite and has been taken
    gradient_norm: Tensor  # 0-dim, after combining, before clipping


class Learner(nn.Module):
    """One network with its optimiser and its own combiner.

    With `jacobian_chunk` a method whose weights depend on the Gramian alone gets it without the Jacobian
    (`TaskGradients.gram`), and the direction comes from a second, weighted pass.

    A preconditioned direction is taken as it is, theta - lr * direction, neither clipped nor passed through
    Adam; task heads have Adam all the same.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        combiner: Combiner,
        *,
        lr: float,
        eps: float,
        max_norm: float | None,
        jacobian_chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.flat = parameters
        self.combiner = combiner
        self.jacobian_chunk = jacobian_chunk if isinstance(combiner, GramCombiner) else None
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
        columns = self.flat.num_shared
        if self.jacobian_chunk is not None:
            columns = min(columns, self.jacobian_chunk)
        size = self.flat.vector.element_size()
        return combiner.jacobians * combiner.num_tasks * columns * size

    def step(self, loss_function: LossFunction) -> StepReport:
        """Take one descent step; a non-finite one changes nothing but `failures` [T]."""
        combiner, gradients = self.combiner, self._gradients
        before = _copies(combiner)
        gradients.start(loss_function)
        with combiner.unchecked():
            shared = self._direction(combiner)
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

    def _direction(self, combiner: Combiner) -> Tensor:
        if isinstance(combiner, LossCombiner):
            return self._gradients.weighted(combiner.weights)
        if self.jacobian_chunk is not None and isinstance(combiner, GramCombiner):
            weights = combiner.weights(self._gradients.gram(gramian, self.jacobian_chunk))
            return self._gradients.weighted(lambda losses: weights)
        return combiner.direction(self._gradients)

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


def make_adam(parameter: Tensor, *, lr: float, eps: float = 1e-8) -> torch.optim.Adam:
    """Return Adam for one tensor, of the kind that `masked_step` can mask; on CUDA fit for a graph."""
    # Fused Adam skips a step on the device when found_inf is 1: no host needs to look at the gradient.
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
