"""Descent of one network along the combined gradients of its tasks, by Adam. Knows no agent.

A step evaluates losses and gradients as the combiner asks for them (`TaskGradients`), combines them, clips
the result and moves the parameters. On CUDA a graph can hold it.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner, GramCombiner, LossCombiner
from mtrl.gradients.per_task import FlatParameters, Jacobians, LossEvaluation, LossFunction, TaskGradients
from mtrl.gradients.scope import held_by
from mtrl.networks.base import Parameters


class StepReport(NamedTuple):
    """The outcome of one descent step, as device tensors; see `TaskGradients`."""

    losses: Tensor  # [T], 0 for tasks that were not evaluated
    evaluated: Tensor  # [T], 1 or 0
    gradient_norm: Tensor  # 0-dim, of the combined gradient and those of the task heads, before clipping
    task_norms: Tensor | None  # [T], of the tasks' gradients; None: the method never forms them
    evaluations: list[LossEvaluation]


class Descent(nn.Module):
    """One network with its optimiser and its combiner.

    A preconditioned direction is applied as theta - lr * direction, without clipping and Adam. Task heads
    always step by Adam. Non-finite steps are applied, so look at `failures` before saving. From here on the
    combiner checks no inputs (`skip_checks`).

    Args:
        parameters: of the network.
        combiner: of its tasks' gradients.
        lr: learning rate.
        eps: of Adam.
        max_norm: bound of the gradient's norm, task heads included; None: none.
        weight_decay: decoupled, as AdamW's: before a step parameters shrink by lr * weight_decay.
        undecayed: how many numbers at the end of the vector do not shrink.
        project: of the network (`Projects`).
    """

    def __init__(
        self,
        parameters: FlatParameters,
        combiner: Combiner,
        *,
        lr: float,
        eps: float,
        max_norm: float | None,
        weight_decay: float = 0.0,
        undecayed: int = 0,
        project: Callable[[Parameters], None] | None = None,
    ) -> None:
        super().__init__()
        self.flat, self.combiner, self._project = parameters, combiner, project
        self._weight_decay, self._decayed = weight_decay, parameters.vector.numel() - undecayed
        self.max_norm = None if combiner.preconditioned else max_norm
        combiner.partition(parameters.module_sizes)
        combiner.skip_checks()
        combiner.prepare(parameters.seen[: parameters.num_shared])
        self.optimizer = make_adam(parameters.vector, lr=lr, eps=eps)
        self._jacobians: Jacobians = {}
        # 0, or NaN for a task with a non-finite loss or gradient; the last entry is for directions.
        self._trouble: Tensor = nn.Buffer(torch.zeros(combiner.num_tasks + 1), persistent=False)

    @property
    def jacobian_bytes(self) -> int:
        """Bytes of the Jacobians that exist at once during a step."""
        if isinstance(self.combiner, LossCombiner) and self.combiner.weights_suffice:
            return 0
        entries = self.combiner.num_tasks * self.flat.num_shared
        held = self.combiner.jacobians * self.combiner.num_batches
        return held * entries * self.flat.seen.element_size()

    @property
    def failures(self) -> Tensor:
        """The tasks [T] that have made a step non-finite since the start, bool."""
        wrong = self._trouble.isnan()
        # If no single task is to blame (an overflow of the sum, a solver), all tasks are named.
        return wrong[:-1] | (wrong[-1] & ~wrong[:-1].any())

    def step(self, loss_function: LossFunction, temperatures: Tensor | None = None) -> StepReport:
        """Take one descent step; `temperatures` [T] are for methods that read them.

        The order is fixed: combine, clip, check for non-finite numbers, shrink, move, project, look at the
        losses again. Nothing reads back to the host, so that a CUDA graph can hold a step.
        """
        combiner, trouble = self.combiner, self._trouble
        gradients = TaskGradients(
            self.flat, loss_function, combiner.num_tasks, self._jacobians, temperatures, trouble[:-1]
        )
        direction, fresh = _direction(combiner, gradients)
        gradient = direction.to(self.flat.vector.dtype)
        if self.flat.head_slices:
            gradient = torch.cat((gradient, gradients.head_gradient))
        elif not fresh and self.max_norm is not None:
            gradient = gradient.clone()  # clipping overwrites it
        norm = clip_by_norm(gradient, self.max_norm)
        trouble[-1:].add_(norm, alpha=0.0)
        if self._weight_decay:
            self._shrink()
        if combiner.preconditioned:
            self._plain_step(gradient)
        else:
            adam_step(self.optimizer, self.flat.vector, gradient)
        if self._project is not None:
            with torch.no_grad():
                self._project(self.flat.named(self.flat.vector.detach(), rounded=False))
        self.flat.round()
        if combiner.looks_again:
            self._look_again(loss_function)
        return StepReport(gradients.losses, gradients.evaluated, norm, gradients.norms, gradients.evaluations)

    def _shrink(self) -> None:
        own = self.flat.vector.detach()[: self._decayed]
        step_size = torch.as_tensor(self.optimizer.param_groups[0]["lr"], dtype=own.dtype)
        own.addcmul_(own, step_size, value=-self._weight_decay)  # one launch on CUDA

    def _plain_step(self, gradient: Tensor) -> None:
        direction, of_heads = gradient.tensor_split([self.flat.num_shared])
        self.flat.shared.sub_(self.optimizer.param_groups[0]["lr"] * direction)
        if self.flat.head_slices:  # Adam's, which leaves the others alone
            adam_step(self.optimizer, self.flat.vector, torch.cat((torch.zeros_like(direction), of_heads)))

    @torch.no_grad()
    def _look_again(self, loss_function: LossFunction) -> None:
        losses, _ = loss_function(self.flat.named(), 0, None)
        # After a failed step all losses are non-finite, which is no fault of these tasks.
        failed = self._trouble.any()  # numbers are 0 or NaN, which counts as true
        trouble = self._trouble[:-1]
        trouble.add_(torch.where(failed, trouble, losses), alpha=0.0)
        self.combiner.after_step(losses)


def _direction(combiner: Combiner, gradients: TaskGradients) -> tuple[Tensor, bool]:
    """Return the direction [P] at the least cost the method allows, and whether it may be overwritten."""
    if isinstance(combiner, LossCombiner) and combiner.weights_suffice:
        return gradients.weighted(combiner.weights), True
    if isinstance(combiner, GramCombiner) and combiner.weights_suffice:
        return gradients.combined(combiner.weights), True
    return combiner.direction(gradients), False


def clip_by_norm(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scale a vector in place to a Euclidean norm of at most max_norm; return its norm before (0-dim)."""
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if max_norm is not None and math.isfinite(max_norm):
        excess = norm + 1e-6
        excess = excess if max_norm == 1.0 else excess / max_norm  # at the usual bound one launch less
        gradient.div_(excess.clamp(min=1.0))
    return norm


def make_adam(parameter: Tensor, *, lr: float, eps: float = 1e-8) -> torch.optim.Adam:
    """Return fused Adam for one tensor; on CUDA a graph can capture its step."""
    if not parameter.is_cuda:
        return torch.optim.Adam([parameter], lr=lr, eps=eps, fused=True)
    step_size = torch.tensor(lr, device=parameter.device)  # a number would be frozen into the graph
    return torch.optim.Adam([parameter], lr=step_size, eps=eps, fused=True, capturable=True)


def set_lr(optimizer: torch.optim.Adam, lr: float) -> None:
    """Change the learning rate, also that of steps in a captured CUDA graph."""
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


@torch.no_grad()
def load_in_place(optimizer: torch.optim.Optimizer, saved: Mapping[Any, Mapping[str, Any]]) -> None:
    """Restore the "state" of an optimiser's state_dict, but not its parameter groups.

    Tensors that the optimiser has are overwritten where they are. `load_state_dict` would replace them, and a
    captured graph would continue with the old ones. New tensors are copies, which keep no file mapped. The
    parameter groups hold learning rates and flags of the device, which stay.
    """
    held = enumerate(held_by(optimizer))
    own = {number: optimizer.state[leaf] for number, leaf in held if leaf in optimizer.state}
    if saved.keys() - own.keys():  # an optimiser without state, which no graph has captured
        optimizer.load_state_dict({**optimizer.state_dict(), "state": copy.deepcopy(dict(saved))})
        return
    for number, values in own.items():
        for name, value in values.items():
            new = saved.get(number, {}).get(name)
            if not isinstance(value, Tensor):
                values[name] = new
            elif new is None:  # saved before the first step
                value.zero_()
            else:
                value.copy_(new)
