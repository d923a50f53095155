"""Per-task gradients by one batched backward, weighted-loss gradients. Knows no agent."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mtrl.gradients.flat_parameters import FlatParameters, Slot
from mtrl.networks.base import Parameters, PerTaskParameters

# Losses of independent batch k at given named parameters; shared ones may carry a leading task axis. With
# None for all tasks [T], else for the tasks of an index tensor [N], to which per-task parameters belong: [N].
LossFunction = Callable[[Parameters, int, Tensor | None], Tensor]


class TaskGradients:
    """Evaluates one network's losses and gradients for a combiner (`combiners.base.JacobianAt`).

    Attributes:
        losses: [T], of the first evaluation at the current parameters.
        head_gradient: [H], each head's gradient of its own task's loss, from that same evaluation or, where
            there was one, from the last at moved heads.
        evaluated: [T] bool, whether task t's loss was looked at; `losses` is 0 where not.
        finite: [T] bool, whether task t's losses and gradients were finite in all evaluations; a gradient
            that nobody formed alone (`weighted`) is not looked at.
        temperatures: [T], the tasks' temperatures where the agent has some, for methods that read them.
        norms: [T], lengths of the shared parameters' gradients in the first evaluation; None: not formed.
    """

    losses: Tensor
    head_gradient: Tensor
    evaluated: Tensor
    finite: Tensor
    norms: Tensor | None
    temperatures: Tensor | None = None

    def __init__(self, parameters: FlatParameters, num_tasks: int) -> None:
        self._flat = parameters
        self._num_tasks = num_tasks
        self._jacobians: list[Tensor] = []

    def start(self, loss_function: LossFunction) -> None:
        """Begin a step on new losses; Jacobians of the step before are overwritten."""
        self._loss_function = loss_function
        self._first = True
        self._used = 0
        self.norms = None
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
        """Return `evaluate` of the same arguments, and take note of the lengths of its rows."""
        jacobian = self.evaluate(offset, batch, tasks, head_offset)
        self.note_norms(torch.linalg.vector_norm(jacobian, dim=1), tasks)
        return jacobian

    def evaluate(
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
        heads = self._head_leaves(head_offset)
        mine = heads if tasks is None else {k: head.index_select(0, tasks) for k, head in heads.items()}
        places = {s.name: s.per_task(jacobian) for s in flat.shared_slots if tasks is None or not s.own_row}
        losses = self._loss_function(PerTaskParameters({**leaves, **mine}, places), batch, tasks)
        gradients = _gradients(losses.sum(), [*leaves.values(), *heads.values()])
        first = offset is None and batch == 0
        self._note(losses.detach(), gradients[len(leaves) :], tasks, first=first)
        for slot, gradient in zip(flat.shared_slots, gradients, strict=False):
            _store(jacobian, slot, gradient, tasks)
        if head_offset is not None:
            moved = [gradient.flatten() for gradient in gradients[len(leaves) :]]
            self.head_gradient = torch.cat([jacobian.new_empty(0), *moved])
        return jacobian

    def note_norms(self, norms: Tensor, tasks: Tensor | None = None) -> None:
        """Take note of the lengths [T] of the last evaluation's rows, or [N] of those of some tasks."""
        self._blame(torch.isfinite(norms), tasks)
        if self.norms is None:
            empty = norms.new_zeros(self._num_tasks)
            self.norms = norms if tasks is None else empty.index_copy(0, tasks, norms)

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

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient [P] of the weighted sum of losses, one ordinary backward; weights_of maps [T] to [T]."""
        flat = self._flat
        leaves = {slot.name: slot.joint(self.parameters).requires_grad_() for slot in flat.shared_slots}
        heads = self._head_leaves()
        losses = self._loss_function({**leaves, **heads}, 0, None)
        weights = weights_of(losses.detach()).to(losses.dtype)
        if not heads:
            gradients = _gradients(weights @ losses, list(leaves.values()))
            self._note(losses.detach(), (), None, first=True)
        else:
            # The torso takes the weighted gradient, each head its own task's, which no single scalar has.
            gradients = _gradients(weights @ losses, list(leaves.values()), retain_graph=True)
            own = _gradients(losses.sum(), list(heads.values()))
            self._note(losses.detach(), own, None, first=True)
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


def _gradients(loss: Tensor, leaves: list[Tensor], *, retain_graph: bool = False) -> tuple[Tensor, ...]:
    """Return the gradients of a 0-dim loss; zeros for a parameter that the network does not use."""
    return torch.autograd.grad(loss, leaves, retain_graph=retain_graph, materialize_grads=True)
