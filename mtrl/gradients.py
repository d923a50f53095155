"""Flat parameters, per-task gradients by one batched backward, weighted-loss gradients. Knows no SAC."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Losses [T] of independent batch k at given named parameters; shared ones may carry a leading task axis.
LossFunction = Callable[[Mapping[str, Tensor], int], Tensor]


class _Slot(NamedTuple):
    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    own_row: bool  # shape [S, T, ...], of which task t uses row t alone

    def joint(self, vector: Tensor) -> Tensor:
        """View of this parameter in a vector [P], of its shape."""
        return vector[self.start : self.stop].view(self.shape)

    def per_task(self, rows: Tensor) -> Tensor:
        """View of this parameter in rows [T, P]: [T, *shape], or [T, S, ...] where each task has a row."""
        view = rows[:, self.start : self.stop].view(-1, *self.shape)
        return view.diagonal(dim1=0, dim2=2).movedim(-1, 0) if self.own_row else view


class FlatParameters(nn.Module):
    """Named parameters of one network in one vector [P + H]: P shared first, then H of the task heads.

    `own_rows` names shared parameters of shape [S, T, ...], such as an embedding of the task identity, of
    which task t's loss uses row t alone; a loss sees their per-task form as [T, S, ...].
    """

    def __init__(
        self,
        shared: Mapping[str, Tensor],
        heads: Mapping[str, Tensor] | None = None,
        own_rows: Collection[str] = (),
    ) -> None:
        super().__init__()
        heads = heads or {}
        self._slots: list[_Slot] = []
        start = 0
        for name, value in [*shared.items(), *heads.items()]:
            stop = start + value.numel()
            self._slots.append(_Slot(name, tuple(value.shape), start, stop, name in own_rows))
            start = stop
        self.shared_slots = self._slots[: len(shared)]
        self.head_slots = self._slots[len(shared) :]
        self.num_shared = sum(value.numel() for value in shared.values())
        self.vector = nn.Parameter(
            torch.cat([v.detach().flatten() for v in [*shared.values(), *heads.values()]])
        )

    def named(self, vector: Tensor | None = None) -> dict[str, Tensor]:
        """Views of `vector` (default: the parameters, detached) under their names; shared ones are joint."""
        source = self.vector.detach() if vector is None else vector
        return {slot.name: slot.joint(source) for slot in self._slots}


class TaskGradients:
    """Evaluates one network's losses and gradients for a combiner (`combiners.base.JacobianAt`).

    Attributes:
        losses: [T], of the first evaluation at the current parameters.
        head_gradient: [H], each head's gradient of its own task's loss, from that same evaluation.
        finite: [T] bool, whether task t's loss and the gradient of its first-layer bias, which every upstream
            non-finite value reaches, were finite in all evaluations.
    """

    losses: Tensor
    head_gradient: Tensor
    finite: Tensor

    def __init__(self, parameters: FlatParameters, num_tasks: int) -> None:
        self._flat = parameters
        self._num_tasks = num_tasks
        self._jacobians: list[Tensor] = []

    def start(self, loss_function: LossFunction) -> None:
        """Begin a step on new losses; Jacobians of the step before are overwritten."""
        self._loss_function = loss_function
        self._evaluated = False
        self._used = 0
        self.finite = torch.ones(self._num_tasks, dtype=torch.bool, device=self._flat.vector.device)

    @property
    def parameters(self) -> Tensor:
        """Current shared parameters [P]."""
        return self._flat.vector.detach()[: self._flat.num_shared]

    def __call__(self, offset: Tensor | None = None, batch: int = 0) -> Tensor:
        """Per-task gradients [T, P] of the shared parameters by one batched backward.

        Args:
            offset: [T, P]; task t is evaluated at parameters + offset[t]. None: at the parameters.
            batch: index of the independent batch.
        """
        flat = self._flat
        jacobian = self._next_jacobian()
        rows = self.parameters.expand(self._num_tasks, -1)
        if offset is not None:
            rows = rows + offset
        leaves: dict[str, Tensor] = {}
        destinations: list[Tensor] = []
        for slot in flat.shared_slots:
            leaf = slot.per_task(rows).requires_grad_()
            # A layer that can form its gradient in place of a copy finds the place here.
            leaf.grad = slot.per_task(jacobian)
            destinations.append(leaf.grad)
            leaves[slot.name] = leaf
        heads = self._head_leaves()
        losses = self._loss_function({**leaves, **heads}, batch)
        gradients = torch.autograd.grad(losses.sum(), [*leaves.values(), *heads.values()])
        for destination, gradient in zip(destinations, gradients, strict=False):
            if gradient.data_ptr() != destination.data_ptr():
                destination.copy_(gradient)
        self._note(losses.detach(), gradients[len(leaves) :], batch, offset)
        # The first layer's bias: small, and what is not finite anywhere above it reaches it.
        smallest = min(flat.shared_slots[:2], key=lambda slot: slot.stop - slot.start)
        self.finite &= torch.isfinite(jacobian[:, smallest.start : smallest.stop].sum(1))
        return jacobian

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradient [P] of the weighted sum of losses, one ordinary backward; weights_of maps [T] to [T]."""
        flat = self._flat
        leaves = {slot.name: slot.joint(self.parameters).requires_grad_() for slot in flat.shared_slots}
        heads = self._head_leaves()
        losses = self._loss_function({**leaves, **heads}, 0)
        weights = weights_of(losses.detach()).to(losses.dtype)
        if not heads:
            gradients = torch.autograd.grad(weights @ losses, list(leaves.values()))
            self._note(losses.detach(), (), 0, None)
        else:
            # The torso takes the weighted gradient, each head its own task's, which no single scalar has.
            gradients = torch.autograd.grad(weights @ losses, list(leaves.values()), retain_graph=True)
            self._note(losses.detach(), torch.autograd.grad(losses.sum(), list(heads.values())), 0, None)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def _next_jacobian(self) -> Tensor:
        # Kept from step to step: tens of megabytes that the system would otherwise map and clear each time.
        # Zeros at first, for the entries that are never written: own-row parameters of the other tasks.
        if self._used == len(self._jacobians):
            self._jacobians.append(self.parameters.new_zeros(self._num_tasks, self._flat.num_shared))
        self._used += 1
        return self._jacobians[self._used - 1]

    def _head_leaves(self) -> dict[str, Tensor]:
        vector = self._flat.vector.detach()
        return {slot.name: slot.joint(vector).requires_grad_() for slot in self._flat.head_slots}

    def _note(
        self, losses: Tensor, head_gradients: tuple[Tensor, ...], batch: int, offset: Tensor | None
    ) -> None:
        self.finite &= torch.isfinite(losses)
        if offset is None and batch == 0 and not self._evaluated:
            self._evaluated = True
            self.losses = losses
            empty = losses.new_empty(0)
            self.head_gradient = torch.cat([empty, *(gradient.flatten() for gradient in head_gradients)])


def clip_by_norm(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scale a vector in place to Euclidean norm at most max_norm; return its norm before that (0-dim)."""
    norm: Tensor = torch.linalg.vector_norm(gradient)
    if max_norm is not None and math.isfinite(max_norm):
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def all_finite(*tensors: Tensor) -> Tensor:
    """Whether every entry of every tensor is finite: a 0-dim bool tensor, not read on the host."""
    return torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()
