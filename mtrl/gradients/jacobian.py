"""Per-task gradients by one batched backward, weighted-loss gradients. Knows no SAC."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mtrl.gradients.flat_parameters import FlatParameters, Slot
from mtrl.gradients.gram_sum import GramSum

# Losses of independent batch k at given named parameters; shared ones may carry a leading task axis. With
# None for all tasks [T], else for the tasks of an index tensor [N], to which the parameters then belong: [N].
LossFunction = Callable[[Mapping[str, Tensor], int, Tensor | None], Tensor]


class TaskGradients:
    """Evaluates one network's losses and gradients for a combiner (`combiners.base.JacobianAt`).

    Attributes:
        losses: [T], of the first evaluation at the current parameters.
        head_gradient: [H], each head's gradient of its own task's loss, from that same evaluation or, where
            there was one, from the last at moved heads.
        evaluated: [T] bool, whether task t's loss was looked at; `losses` is 0 where not.
        finite: [T] bool, whether task t's loss and the gradient of its first-layer bias, which every upstream
            non-finite value reaches, were finite in all evaluations.
    """

    losses: Tensor
    head_gradient: Tensor
    evaluated: Tensor
    finite: Tensor

    def __init__(self, parameters: FlatParameters, num_tasks: int) -> None:
        self._flat = parameters
        self._num_tasks = num_tasks
        self._jacobians: list[Tensor] = []

    def start(self, loss_function: LossFunction) -> None:
        """Begin a step on new losses; Jacobians of the step before are overwritten."""
        self._loss_function = loss_function
        self._first = True
        self._used = 0
        self.finite = torch.ones(self._num_tasks, dtype=torch.bool, device=self._flat.vector.device)

    @property
    def parameters(self) -> Tensor:
        """Current shared parameters [P]."""
        return self._flat.vector.detach()[: self._flat.num_shared]

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """Parameters of the task heads and their gradients so far, [T, h] each."""
        sizes = [slot.stop - slot.start for slot in self._flat.head_slots]
        pair = (self._flat.vector.detach()[self._flat.num_shared :], self.head_gradient)
        rows = [[part.view(self._num_tasks, -1) for part in vector.split(sizes)] for vector in pair]
        none = self.head_gradient.new_empty(self._num_tasks, 0)
        return torch.cat([none, *rows[0]], dim=1), torch.cat([none, *rows[1]], dim=1)

    def __call__(
        self,
        offset: Tensor | None = None,
        batch: int = 0,
        tasks: Tensor | None = None,
        head_offset: Tensor | None = None,
    ) -> Tensor:
        """Per-task gradients [T, P] of the shared parameters by one batched backward.

        Args:
            offset: [T, P]; task t is evaluated at parameters + offset[t]. None: at the parameters.
            batch: index of the independent batch.
            tasks: int64 [N] without repetition; only these tasks are evaluated, which gives [N, P].
            head_offset: [T, h]; the task heads are moved by it, and step by their gradients from there.
        """
        flat = self._flat
        jacobian = self._next_jacobian(self._num_tasks if tasks is None else len(tasks))
        leaves = self._per_task_leaves(offset, tasks)
        for slot in flat.shared_slots:
            if tasks is None or not slot.own_row:
                # A layer that can form its gradient in place of a copy finds the place here.
                leaves[slot.name].grad = slot.per_task(jacobian)
        first = offset is None and batch == 0
        gradients = self._backward(leaves, self._head_leaves(head_offset), batch, tasks, first=first)
        for slot, gradient in zip(flat.shared_slots, gradients, strict=False):
            _store(jacobian, slot, gradient, tasks)
        if head_offset is not None:
            moved = [gradient.flatten() for gradient in gradients[len(leaves) :]]
            self.head_gradient = torch.cat([jacobian.new_empty(0), *moved])
        return jacobian

    def gram(self, gramian: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        """Inner products [T, T] of the per-task gradients, of which at most `chunk` columns exist at a time.

        A weight's gradient is formed and used up block by block; one row of a weight is the smallest block.

        Args:
            gramian: maps columns of the Jacobian [T, p] to their inner products [T, T].
            chunk: p at most.
        """
        leaves = self._per_task_leaves(None, None)
        sums = {name: GramSum(gramian, chunk) for name in leaves}
        for name, leaf in leaves.items():
            leaf.gram_sum = sums[name]  # type: ignore[attr-defined]  # read by a layer that forms blocks
        gradients = self._backward(leaves, self._head_leaves(), 0, None, first=True)
        total = gradients[0].new_zeros(self._num_tasks, self._num_tasks)
        for slot, gradient in zip(self._flat.shared_slots, gradients, strict=False):
            own = sums[slot.name]
            if own.total is not None:
                total += own.total
            elif slot.own_row:
                total.diagonal().add_(gradient.square().flatten(1).sum(1))
            else:
                total += gramian(gradient.flatten(1))
        return total

    def _per_task_leaves(self, offset: Tensor | None, tasks: Tensor | None) -> dict[str, Tensor]:
        """Shared parameters with a leading task axis, each ready to take a gradient."""
        rows = self.parameters.expand(self._num_tasks, -1)
        if offset is not None:
            rows = rows + offset
        leaves: dict[str, Tensor] = {}
        for slot in self._flat.shared_slots:
            value = slot.per_task(rows)
            leaves[slot.name] = (value if tasks is None else _of_tasks(value, tasks)).requires_grad_()
        return leaves

    def _backward(
        self,
        leaves: dict[str, Tensor],
        heads: dict[str, Tensor],
        batch: int,
        tasks: Tensor | None,
        *,
        first: bool,
    ) -> tuple[Tensor, ...]:
        """Evaluate the losses and return the gradients of the leaves, then of the heads."""
        mine = heads if tasks is None else {k: head.index_select(0, tasks) for k, head in heads.items()}
        losses = self._loss_function({**leaves, **mine}, batch, tasks)
        gradients = torch.autograd.grad(losses.sum(), [*leaves.values(), *heads.values()])
        self._note(losses.detach(), gradients[len(leaves) :], tasks, first=first)
        # The first layer's bias: small, and what is not finite anywhere above it reaches it.
        slots = list(enumerate(self._flat.shared_slots[:2]))
        smallest = min(slots, key=lambda pair: pair[1].stop - pair[1].start)[0]
        self._blame(torch.isfinite(gradients[smallest].flatten(1).sum(1)), tasks)
        return gradients

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient [P] of the weighted sum of losses, one ordinary backward; weights_of maps [T] to [T]."""
        flat = self._flat
        leaves = {slot.name: slot.joint(self.parameters).requires_grad_() for slot in flat.shared_slots}
        heads = self._head_leaves()
        losses = self._loss_function({**leaves, **heads}, 0, None)
        weights = weights_of(losses.detach()).to(losses.dtype)
        if not heads:
            gradients = torch.autograd.grad(weights @ losses, list(leaves.values()))
            self._note(losses.detach(), (), None, first=True)
        else:
            # The torso takes the weighted gradient, each head its own task's, which no single scalar has.
            gradients = torch.autograd.grad(weights @ losses, list(leaves.values()), retain_graph=True)
            self._note(
                losses.detach(), torch.autograd.grad(losses.sum(), list(heads.values())), None, first=True
            )
        return torch.cat([gradient.flatten() for gradient in gradients])

    def _next_jacobian(self, rows: int) -> Tensor:
        # Kept from step to step: tens of megabytes that the system would otherwise map and clear each time.
        # Zeros at first, for the entries that are never written: own-row parameters of the other tasks.
        self._used += 1
        kept = self._jacobians[self._used - 1 : self._used]
        if not kept or len(kept[0]) != rows:
            kept = [self.parameters.new_zeros(rows, self._flat.num_shared)]
            self._jacobians[self._used - 1 : self._used] = kept
        return kept[0]

    def _head_leaves(self, offset: Tensor | None = None) -> dict[str, Tensor]:
        vector = self._flat.vector.detach()
        leaves = {slot.name: slot.joint(vector) for slot in self._flat.head_slots}
        if offset is not None:
            sizes = [value[0].numel() for value in leaves.values()]
            parts = zip(leaves.items(), offset.split(sizes, dim=1), strict=True)
            leaves = {name: value + part.view(value.shape) for (name, value), part in parts}
        return {name: value.requires_grad_() for name, value in leaves.items()}

    def _note(
        self, losses: Tensor, head_gradients: tuple[Tensor, ...], tasks: Tensor | None, *, first: bool
    ) -> None:
        self._blame(torch.isfinite(losses), tasks)
        if not (first and self._first):
            return
        self._first = False
        whole = torch.ones_like(self.finite)
        self.evaluated = whole if tasks is None else torch.zeros_like(whole).index_fill(0, tasks, True)
        empty = losses.new_zeros(self._num_tasks)
        self.losses = losses if tasks is None else empty.index_copy(0, tasks, losses)
        self.head_gradient = torch.cat([empty[:0], *(gradient.flatten() for gradient in head_gradients)])

    def _blame(self, finite: Tensor, tasks: Tensor | None) -> None:
        if tasks is not None:
            finite = torch.ones_like(self.finite).index_copy(0, tasks, finite)
        self.finite &= finite


def _of_tasks(rows: Tensor, tasks: Tensor) -> Tensor:
    """Rows [N, ...] of some tasks; rows that all tasks share stay one row, expanded."""
    if rows.stride(0) == 0:
        return rows[:1].expand(len(tasks), *rows.shape[1:])
    return rows.index_select(0, tasks)


def _store(jacobian: Tensor, slot: Slot, gradient: Tensor, tasks: Tensor | None) -> None:
    """Write a parameter's gradient [N, ...] into the Jacobian [N, P], unless its layer has done so."""
    if tasks is None or not slot.own_row:
        destination = slot.per_task(jacobian)
        if gradient.data_ptr() != destination.data_ptr():
            destination.copy_(gradient)
        return
    block = jacobian[:, slot.start : slot.stop].view(-1, *slot.shape)
    row = tasks.view(-1, *[1] * (block.dim() - 1)).expand(-1, block.shape[1], 1, *block.shape[3:])
    block.zero_().scatter_(2, row, gradient.unsqueeze(2))


def task_jacobian(
    losses: Tensor, parameters: nn.Module | Iterable[Tensor], *, batched: bool = True
) -> Tensor:
    """Gradients [T, P] of the losses [T] of T tasks that share parameters: what a combiner takes.

    Parameters that need no gradient are left out, the others make up P in their order; a task that does not
    use one has zeros there. The graph of `losses` is freed.

    Args:
        losses: [T], computed from the parameters by any differentiable code.
        parameters: a module, or tensors.
        batched: one backward for all tasks. False: one per task, for operations that torch.vmap refuses.

    Raises:
        ValueError: losses are not a vector with a graph, or no parameter needs a gradient.
    """
    leaves = _trainable(parameters)
    if losses.dim() != 1 or not losses.requires_grad:
        found = f"shape {list(losses.shape)}, requires_grad={losses.requires_grad}"
        raise ValueError(f"losses must be a vector [T], one per task, with a graph; found {found}.")
    unit = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    rows = []
    for block in (unit,) if batched else unit:
        gradients = torch.autograd.grad(
            losses, leaves, block, is_grads_batched=batched, allow_unused=True, retain_graph=not batched
        )
        count = len(unit) if batched else 1
        parts = [
            leaf.new_zeros(count, leaf.numel()) if gradient is None else gradient.reshape(count, -1)
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ]
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def set_gradient(parameters: nn.Module | Iterable[Tensor], direction: Tensor) -> None:
    """Put a direction [P] into `.grad` of the parameters of which `task_jacobian` took the gradients.

    Raises:
        ValueError: the direction has another length.
    """
    leaves = _trainable(parameters)
    sizes = [leaf.numel() for leaf in leaves]
    if direction.shape != (sum(sizes),):
        raise ValueError(f"direction must have shape [{sum(sizes)}]; found {list(direction.shape)}.")
    for leaf, part in zip(leaves, direction.detach().split(sizes), strict=True):
        leaf.grad = part.view(leaf.shape).to(leaf.dtype, copy=True)


def _trainable(parameters: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    given = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    leaves = [leaf for leaf in given if leaf.requires_grad]
    if not leaves:
        raise ValueError("parameters must hold at least one tensor with requires_grad=True; found none.")
    return leaves


def clip_by_norm(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scale a vector in place to Euclidean norm at most max_norm; return its norm before that (0-dim)."""
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if max_norm is not None and math.isfinite(max_norm):
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def all_finite(*tensors: Tensor) -> Tensor:
    """Whether every entry of every tensor is finite: a 0-dim bool tensor, not read on the host."""
    return torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()
