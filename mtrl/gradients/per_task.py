"""Per-task gradients of one network, and the descent step along their combination. Knows no agent.

A step evaluates losses and gradients as the combiner asks for them (`TaskGradients`), combines them, clips
the result and moves the parameters (`Descent`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner, GramCombiner, LossCombiner
from mtrl.gradients.adam import adam_step, make_adam
from mtrl.gradients.columns import combination, gramian_of
from mtrl.gradients.flat import FlatParameters, Slice, joint_views, per_task_views
from mtrl.networks.base import Parameters, PlacedParameters

# Maps named parameters, the number of a batch and an int64 index [N] of tasks (None: all T) to losses, [N] or
# [T], and a detached `aux` for the caller. Shared parameters may have a leading axis of these tasks.
LossFunction = Callable[[Parameters, int, Tensor | None], tuple[Tensor, Any]]


# Jacobians by their place in a step and the number of chosen tasks, None: all. Rows of a choice hold own-row
# parameters elsewhere than those of all tasks, also where all are chosen.
Buffers = dict[tuple[int, int | None], Tensor]


class Evaluation(NamedTuple):
    """One evaluation of a network's losses within a step."""

    batch: int
    tasks: Tensor | None  # int64 [N]; None: all
    aux: Any  # of the loss function


class TaskGradients:
    """Losses and per-task gradients of one network for one step (`mtrl.combiners.base.JacobianAt`).

    Args:
        flat: the network's parameters.
        loss_function: the losses.
        num_tasks: T.
        buffers: Jacobians of the steps before. They are overwritten: otherwise the system would map and clear
            tens of megabytes at each step.
        temperatures: [T], for methods that read them.
        trouble: [T], becomes NaN for a task with a non-finite loss or gradient and stays as it is for others.
            `weighted` forms no gradients of single tasks and looks at losses only. None: not wanted.

    Attributes:
        losses: [T], of the first evaluation; 0 for tasks that it left out.
        evaluated: [T], 1 for the tasks of the first evaluation and 0 for others; not to be written to.
        norms: [T], norms of the shared parameters' gradients in the first evaluation; None: not formed.
        head_gradient: [H], each head's gradient of its own task's loss, from the first evaluation or from the
            last one at moved heads.
        evaluations: all up to the first one of all tasks; later ones repeat tasks.
    """

    losses: Tensor
    evaluated: Tensor
    head_gradient: Tensor

    def __init__(
        self,
        flat: FlatParameters,
        loss_function: LossFunction,
        num_tasks: int,
        buffers: Buffers,
        temperatures: Tensor | None = None,
        trouble: Tensor | None = None,
    ) -> None:
        self._flat, self._loss_function, self._num_tasks = flat, loss_function, num_tasks
        self._buffers, self._used = buffers, 0
        self.temperatures, self._trouble = temperatures, trouble
        self.norms: Tensor | None = None
        self.evaluations: list[Evaluation] = []

    @property
    def parameters(self) -> Tensor:
        """Current shared parameters [P], detached."""
        return self._flat.shared

    @property
    def _seen(self) -> Tensor:
        return self._flat.seen[: self._flat.num_shared]

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """Parameters of the task heads and their gradients so far, [T, h] each."""
        sizes = [part.stop - part.start for part in self._flat.head_slices]
        pair = (self._flat.vector.detach()[self._flat.num_shared :], self.head_gradient)
        rows = [[part.view(self._num_tasks, -1) for part in vector.split(sizes)] for vector in pair]
        none = self.head_gradient.new_empty(self._num_tasks, 0)
        return torch.cat([none, *rows[0]], dim=1), torch.cat([none, *rows[1]], dim=1)

    def __call__(self, offset: Tensor | None = None, batch: int = 0, tasks: Tensor | None = None) -> Tensor:
        """Return the Jacobian [T, P], or [N, P] of `tasks`, by one batched backward; see `JacobianAt`."""
        jacobian = self._evaluate(offset, batch, tasks)
        self._note_norms(torch.linalg.vector_norm(jacobian, dim=1, dtype=self.parameters.dtype), tasks)
        return jacobian

    def combined(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient [P] of `weights @ losses` for `weights_of(Gramian)`, Gramian [T, T]."""
        jacobian = self._evaluate(None, 0, None, whole=False)
        gram = gramian_of(jacobian, self._flat.shared_slices, self._factors)
        # The diagonal holds the squared norms of the rows: this saves a pass over the Jacobian.
        self._note_norms(gram.diagonal().sqrt(), None)
        return combination(weights_of(gram), jacobian, self._flat.shared_slices, self._factors)

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient [P] of `weights_of(losses) @ losses` by one ordinary backward."""
        parts, shared, heads = self._flat.shared_slices, self._seen, self._head_leaves(None)
        direction = torch.empty_like(shared)
        leaves = {name: value.requires_grad_() for name, value in joint_views(parts, shared).items()}
        places = joint_views(parts, direction)
        losses, aux = self._loss_function(PlacedParameters({**leaves, **heads}, places), 0, None)
        weights = weights_of(losses.detach()).to(losses.dtype)
        # Shared parameters take the weighted gradient, heads the unweighted one of their own task, so there
        # are two backward passes (the second reaches the heads alone).
        gradients = _gradients(losses, weights, list(leaves.values()), retain_graph=bool(heads))
        own = _gradients(losses, _ones_like(losses), list(heads.values())) if heads else ()
        self._note(losses.detach(), own, Evaluation(0, None, aux))
        pairs = [(places[part.name], value) for part, value in zip(parts, gradients, strict=True)]
        apart = [pair for pair in pairs if not _same_place(*pair)]
        if apart:  # one launch on CUDA
            torch._foreach_copy_([place for place, _ in apart], [value for _, value in apart])
        return direction

    def _evaluate(
        self, offset: Tensor | None, batch: int, tasks: Tensor | None, *, whole: bool = True
    ) -> Tensor:
        """Return the Jacobian; unless `whole`, columns with `_factors` may be left as they were."""
        flat, own_offset = self._flat, None
        if offset is not None:
            columns = (flat.num_shared, offset.shape[1] - flat.num_shared)
            offset, own_offset = offset.split(columns, dim=1)
            own_offset = own_offset if columns[1] else None  # the heads stay
        jacobian = self._next_jacobian(None if tasks is None else len(tasks))
        leaves, heads = self._per_task_leaves(offset, tasks), self._head_leaves(own_offset)
        mine = heads if tasks is None else {k: head.index_select(0, tasks) for k, head in heads.items()}
        # In rows of some tasks, own-row parameters are no view of the Jacobian: `_scatter` writes theirs.
        placed = [part for part in flat.shared_slices if tasks is None or not part.own_row]
        places = per_task_views(placed, jacobian)
        parameters = PlacedParameters({**leaves, **mine}, places, whole=whole)
        losses, aux = self._loss_function(parameters, batch, tasks)
        gradients = _gradients(losses, _ones_like(losses), [*leaves.values(), *heads.values()])
        self._note(losses.detach(), gradients[len(leaves) :], Evaluation(batch, tasks, aux), moved=own_offset)
        self._factors = parameters.outer_products
        for part, gradient in zip(flat.shared_slices, gradients, strict=False):
            if part.name in self._factors:
                continue
            if part.name not in places:
                assert tasks is not None
                _scatter(jacobian, part, gradient, tasks)
            elif not _same_place(gradient, places[part.name]):  # else its layer has written it
                places[part.name].copy_(gradient)
        return jacobian

    def _next_jacobian(self, chosen: int | None) -> Tensor:
        # Zeros at first: a task's row is never written where own-row parameters of other tasks lie.
        self._used += 1
        key, rows = (self._used, chosen), self._num_tasks if chosen is None else chosen
        if key not in self._buffers:
            self._buffers[key] = self._seen.new_zeros(rows, self._flat.num_shared)
        return self._buffers[key]

    def _per_task_leaves(self, offset: Tensor | None, tasks: Tensor | None) -> dict[str, Tensor]:
        """Return shared parameters with a leading task axis, as leaves; stride 0 unless they are moved."""
        rows = self._seen.expand(self._num_tasks, -1)
        if offset is not None:
            rows = (self.parameters + offset).to(rows.dtype)
        values = per_task_views(self._flat.shared_slices, rows)
        if tasks is not None:
            values = {name: _of_tasks(value, tasks) for name, value in values.items()}
        return {name: value.requires_grad_() for name, value in values.items()}

    def _head_leaves(self, offset: Tensor | None) -> dict[str, Tensor]:
        dtype = self._flat.seen.dtype
        source = self._flat.seen if offset is None else self._flat.vector.detach()
        leaves = joint_views(self._flat.head_slices, source)
        if offset is not None:
            sizes = [value[0].numel() for value in leaves.values()]
            parts = zip(leaves.items(), offset.split(sizes, dim=1), strict=True)
            leaves = {name: (value + part.view(value.shape)).to(dtype) for (name, value), part in parts}
        return {name: value.requires_grad_() for name, value in leaves.items()}

    def _note(
        self, losses: Tensor, heads: tuple[Tensor, ...], evaluation: Evaluation, moved: Tensor | None = None
    ) -> None:
        tasks, first = evaluation.tasks, not self.evaluations
        whole = self._whole(losses, tasks)
        self._blame(whole)
        if first:
            ones = _ones_like(whole)
            self.evaluated = ones if tasks is None else torch.zeros_like(ones).index_fill_(0, tasks, 1.0)
            self.losses = whole
        if first or moved is not None:
            parts = [part.flatten() for part in heads]
            self.head_gradient = (torch.cat(parts) if parts else losses.new_empty(0)).to(losses.dtype)
        if all(seen.tasks is not None for seen in self.evaluations):
            self.evaluations.append(evaluation)

    def _note_norms(self, norms: Tensor, tasks: Tensor | None) -> None:
        whole = self._whole(norms, tasks)
        self._blame(whole)
        if self.norms is None:
            self.norms = whole

    def _blame(self, values: Tensor) -> None:
        if self._trouble is not None:
            self._trouble.add_(values, alpha=0.0)  # 0 times a number, NaN otherwise

    def _whole(self, values: Tensor, tasks: Tensor | None) -> Tensor:
        return values if tasks is None else values.new_zeros(self._num_tasks).index_copy_(0, tasks, values)


class StepReport(NamedTuple):
    """The outcome of one descent step, as device tensors; see `TaskGradients`."""

    losses: Tensor  # [T], 0 for tasks that were not evaluated
    evaluated: Tensor  # [T], 1 or 0
    gradient_norm: Tensor  # 0-dim, of the combined gradient before clipping
    task_norms: Tensor | None  # [T], of the tasks' gradients; None: the method never forms them
    evaluations: list[Evaluation]


class Descent(nn.Module):
    """One network with its optimiser and its combiner.

    A preconditioned direction is applied as theta - lr * direction, without clipping and Adam. Task heads
    always step by Adam. Weight decay is decoupled (AdamW) and acts on all parameters. Non-finite steps are
    applied, so look at `failures` before saving.
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
        project: Callable[[Parameters], None] | None = None,  # of the network (`Projects`)
    ) -> None:
        super().__init__()
        self.flat, self.combiner, self._project = parameters, combiner, project
        self.max_norm = None if combiner.preconditioned else max_norm
        combiner.partition(parameters.module_sizes)
        combiner.prepare(parameters.seen[: parameters.num_shared])
        self.optimizer = make_adam(parameters.vector, lr=lr, eps=eps, weight_decay=weight_decay)
        self._jacobians: Buffers = {}
        # 0, or NaN for a task with a non-finite loss or gradient; the last entry is for directions.
        self._trouble: Tensor = nn.Buffer(torch.zeros(combiner.num_tasks + 1), persistent=False)

    @property
    def jacobian_bytes(self) -> int:
        """Bytes of the Jacobians that exist at once during a step."""
        if isinstance(self.combiner, LossCombiner):
            return 0
        entries = self.combiner.num_tasks * self.flat.num_shared
        return self.combiner.jacobians * entries * self.flat.seen.element_size()

    @property
    def failures(self) -> Tensor:
        """The tasks [T] that have made a step non-finite since the start, bool."""
        wrong = self._trouble.isnan()
        # If no single task is to blame (an overflow of the sum, a solver), all tasks are named.
        return wrong[:-1] | (wrong[-1] & ~wrong[:-1].any())

    def step(self, loss_function: LossFunction, temperatures: Tensor | None = None) -> StepReport:
        """Take one descent step; `temperatures` [T] are for methods that read them.

        The order is fixed: combine, clip, check for non-finite numbers, move, project, look at the losses
        again. Nothing reads back to the host, so that a CUDA graph can hold a step.
        """
        combiner, trouble = self.combiner, self._trouble
        gradients = TaskGradients(
            self.flat, loss_function, combiner.num_tasks, self._jacobians, temperatures, trouble[:-1]
        )
        with combiner.unchecked():
            gradient = _direction(combiner, gradients).to(self.flat.vector.dtype)
        if self.flat.head_slices:
            gradient = torch.cat((gradient, gradients.head_gradient))
        norm = clip_by_norm(gradient, self.max_norm)
        trouble[-1:].add_(norm, alpha=0.0)
        if combiner.preconditioned:
            self._plain_step(gradient[: self.flat.num_shared])
        adam_step(self.optimizer, self.flat.vector, gradient)
        if self._project is not None:
            with torch.no_grad():
                self._project(self.flat.named(self.flat.vector.detach(), rounded=False))
        self.flat.round()
        if combiner.looks_again:
            self._look_again(loss_function)
        return StepReport(gradients.losses, gradients.evaluated, norm, gradients.norms, gradients.evaluations)

    def _plain_step(self, direction: Tensor) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        self.flat.shared.sub_(lr * direction)
        direction.zero_()  # Adam steps the heads next, and must leave the shared parameters alone

    @torch.no_grad()
    def _look_again(self, loss_function: LossFunction) -> None:
        losses, _ = loss_function(self.flat.named(), 0, None)
        # After a failed step all losses are non-finite, which is no fault of these tasks.
        failed = self._trouble.isnan().any()
        self._trouble[:-1].add_(losses.masked_fill(failed, 0.0), alpha=0.0)
        with self.combiner.unchecked():
            self.combiner.after_step(losses)


def _direction(combiner: Combiner, gradients: TaskGradients) -> Tensor:
    """Return the combined direction [P], to be overwritten, at the least cost that the method allows."""
    if isinstance(combiner, LossCombiner):
        return gradients.weighted(combiner.weights)
    if isinstance(combiner, GramCombiner) and combiner.gramian_suffices:
        return gradients.combined(combiner.weights)
    return combiner.direction(gradients).clone()  # which may be state of the method


def clip_by_norm(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scale a vector in place to a Euclidean norm of at most max_norm; return its norm before (0-dim)."""
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if max_norm is not None and math.isfinite(max_norm):
        excess = norm + 1e-6
        excess = excess if max_norm == 1.0 else excess / max_norm  # at the usual bound one launch less
        gradient.div_(excess.clamp(min=1.0))
    return norm


def _of_tasks(rows: Tensor, tasks: Tensor) -> Tensor:
    """Return the rows [N, ...] of some tasks; an expansion of one row stays an expansion."""
    if rows.stride(0) == 0:
        return rows[:1].expand(len(tasks), *rows.shape[1:])
    return rows.index_select(0, tasks)


def _scatter(jacobian: Tensor, part: Slice, gradient: Tensor, tasks: Tensor) -> None:
    """Write the gradient [N, S, ...] of a parameter with a row per task into the Jacobian [N, P]."""
    block = jacobian[:, part.start : part.stop].view(-1, *part.shape)
    row = tasks.view(-1, *[1] * (block.dim() - 1)).expand(-1, block.shape[1], 1, *block.shape[3:])
    block.zero_().scatter_(2, row, gradient.unsqueeze(2))


def _same_place(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape begin at the same number (also on the meta device)."""
    storages = (one.untyped_storage()._cdata, other.untyped_storage()._cdata)
    return storages[0] == storages[1] and one.storage_offset() == other.storage_offset()


def _gradients(
    losses: Tensor, weights: Tensor, leaves: list[Tensor], *, retain_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradients of `weights @ losses`; zeros for unused parameters."""
    return torch.autograd.grad(
        losses, leaves, grad_outputs=weights, retain_graph=retain_graph, materialize_grads=True
    )


def _ones_like(losses: Tensor) -> Tensor:
    return _ones(len(losses), losses.dtype, losses.device)


@lru_cache  # a graph need not fill them at each replay
def _ones(number: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(number, dtype=dtype, device=device)
