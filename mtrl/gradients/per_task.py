"""One network's parameters in one vector, and the gradients of its tasks' losses by it. Knows no agent."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners.solvers.gramian import gramian, weighted_sum
from mtrl.gradients.columns import OuterProducts, combination, gramian_of
from mtrl.gradients.rows import of_tasks, same_place, scatter, write
from mtrl.networks.base import Parameters
from mtrl.networks.layers import PlacedParameters


class Slice(NamedTuple):
    """Where one parameter lies in the vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    own_row: bool  # the shape is [S, T, ...], and task t uses row t alone

    def joint(self, vector: Tensor) -> Tensor:
        """View of this parameter, in its shape, in a vector [P]."""
        return vector[self.start : self.stop].view(self.shape)

    def per_task(self, rows: Tensor) -> Tensor:
        """View of this parameter in rows [T, P]: [T, *shape], or [T, S, ...] of each task's own row."""
        view = rows[:, self.start : self.stop].view(-1, *self.shape)
        return view.diagonal(dim1=0, dim2=2).movedim(-1, 0) if self.own_row else view


def joint_views(parts: Iterable[Slice], vector: Tensor) -> dict[str, Tensor]:
    """Views by name of parameters in a vector [P], each in its shape."""
    return {part.name: part.joint(vector) for part in parts}


def per_task_views(parts: Iterable[Slice], rows: Tensor) -> dict[str, Tensor]:
    """Views by name of parameters in rows [T, P], each with a leading task axis."""
    return {part.name: part.per_task(rows) for part in parts}


class FlatParameters(nn.Module):
    """Named parameters of one network in one vector [P + H]: P shared ones, then H of the task heads.

    `own_rows` names shared parameters [S, T, ...] of which task t's loss uses row t alone, such as an
    embedding of the task identity. Their per-task form is [T, S, ...].

    With a `dtype` of half precision networks compute with a rounded copy, and gradients have its dtype. The
    vector itself, which the optimiser moves, keeps its precision: steps below the rounding would be lost.
    """

    def __init__(
        self,
        shared: Mapping[str, Tensor],
        heads: Mapping[str, Tensor] | None = None,
        own_rows: Collection[str] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        named = [*shared.items(), *(heads or {}).items()]
        self._slices: list[Slice] = []
        start = 0
        for name, value in named:
            stop = start + value.numel()
            self._slices.append(Slice(name, tuple(value.shape), start, stop, name in own_rows))
            start = stop
        self.shared_slices, self.head_slices = self._slices[: len(shared)], self._slices[len(shared) :]
        self.num_shared = sum(value.numel() for value in shared.values())
        self.vector = nn.Parameter(torch.cat([value.detach().flatten() for _, value in named]))
        rounds = dtype not in (None, self.vector.dtype)
        self._rounded = nn.Buffer(self.vector.detach().to(dtype), persistent=False) if rounds else None
        if rounds:
            self.register_load_state_dict_post_hook(_round_again)  # type: ignore[no-untyped-call]

    @property
    def module_sizes(self) -> list[int]:
        """How many of the P shared parameters belong to each layer, by the part of a name before its dot.

        A layer whose parameters are empty does not count.
        """
        layers = groupby(self.shared_slices, key=lambda part: part.name.rpartition(".")[0])
        sizes = [sum(part.stop - part.start for part in layer) for _, layer in layers]
        return [size for size in sizes if size > 0]

    @property
    def shared(self) -> Tensor:
        """Shared parameters [P], detached."""
        return self.vector.detach()[: self.num_shared]

    @property
    def seen(self) -> Tensor:
        """All parameters [P + H] as networks compute with them, detached."""
        return self.vector.detach() if self._rounded is None else self._rounded

    def named(self, vector: Tensor | None = None, *, rounded: bool = True) -> dict[str, Tensor]:
        """Views by name of `seen`, or of another vector; shared parameters are joint.

        Another vector is rounded as `seen` is, unless told not to: then views of it may be written to.
        """
        source = self.seen if vector is None else vector.to(self.seen.dtype) if rounded else vector
        return joint_views(self._slices, source)

    @torch.no_grad()
    def round(self) -> None:
        """Renew what networks compute with, after the vector has moved."""
        if self._rounded is not None:
            self._rounded.copy_(self.vector)


def _round_again(flat: FlatParameters, _: Any) -> None:
    flat.round()


# Maps named parameters, the number of a batch and an int64 index [N] of tasks (None: all T) to losses, [N] or
# [T], and a detached `aux` for the caller. Shared parameters may have a leading axis of these tasks.
LossFunction = Callable[[Parameters, int, Tensor | None], tuple[Tensor, Any]]


# Jacobians by their number within a step and the number of chosen tasks (None: all). A choice of all tasks
# has its own buffer: in its order it writes other entries of own-row columns.
Jacobians = dict[tuple[int, int | None], Tensor]


class LossEvaluation(NamedTuple):
    """One evaluation of a network's losses within a step."""

    batch: int
    tasks: Tensor | None  # int64 [N]; None: all
    aux: Any  # of the loss function


class TaskGradients:
    """Losses and per-task gradients of one network for one step (`mtrl.combiners.JacobianAt`).

    Args:
        flat: the network's parameters.
        loss_function: the losses.
        num_tasks: T.
        buffers: Jacobians of the steps before. They are overwritten: otherwise the system would map and clear
            tens of megabytes at each step.
        temperatures: [T], for methods that read them.
        trouble: [T], becomes NaN for a task with a non-finite loss or gradient and stays as it is for others.
            `weighted` and `pooled` look at losses only. None: not wanted.

    Attributes:
        losses: [T], of the first evaluation; 0 for tasks that it left out.
        evaluated: [T], 1 for the tasks of the first evaluation and 0 for others; not to be written to.
        norms: [T], norms of the shared parameters' gradients in the first evaluation; None: not formed.
        head_gradient: [H], each head's gradient of its own task's loss, from the first evaluation or from the
            last one at moved heads.
        evaluations: the evaluations up to and including the first that covers all tasks.
    """

    losses: Tensor
    evaluated: Tensor
    head_gradient: Tensor

    def __init__(
        self,
        flat: FlatParameters,
        loss_function: LossFunction,
        num_tasks: int,
        buffers: Jacobians,
        temperatures: Tensor | None = None,
        trouble: Tensor | None = None,
    ) -> None:
        self._flat, self._loss_function, self._num_tasks = flat, loss_function, num_tasks
        self._buffers, self._used = buffers, 0
        self.temperatures, self._trouble = temperatures, trouble
        self.norms: Tensor | None = None
        self.evaluations: list[LossEvaluation] = []

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
        none = self.head_gradient.new_empty(self._num_tasks, 0)
        parameters = self._head_rows(self._flat.vector.detach()[self._flat.num_shared :])
        gradients = self._head_rows(self.head_gradient)
        return torch.cat([none, *parameters], dim=1), torch.cat([none, *gradients], dim=1)

    def _head_rows(self, vector: Tensor) -> list[Tensor]:
        """Views [T, n] of the parameters of the heads in a vector [H]."""
        sizes = [part.stop - part.start for part in self._flat.head_slices]
        return [part.view(self._num_tasks, -1) for part in vector.split(sizes)]

    def __call__(self, offset: Tensor | None = None, batch: int = 0, tasks: Tensor | None = None) -> Tensor:
        """Return the Jacobian [T, P], or [N, P] of `tasks`, by one batched backward; see `JacobianAt`."""
        jacobian, losses = self._evaluate(offset, batch, tasks)
        norms = torch.linalg.vector_norm(jacobian, dim=1, dtype=self.parameters.dtype)
        self._note_numbers(tasks, losses, norms)
        return jacobian

    def pooled(self, order: Tensor, singles: int) -> Tensor:
        """Return gradients of some tasks and of the mean loss of the others; see `JacobianAt`.

        Gradients of single tasks among the others are formed by layers that do not write to their places.
        """
        rows, losses = self._evaluate(None, 0, order, singles=singles)
        self._note_numbers(order, losses)
        rows[-1].div_(len(order) - singles)
        return rows

    def combined(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient [P] of `weights @ losses` for `weights_of(Gramian)`, Gramian [T, T]."""
        jacobian, losses = self._evaluate(None, 0, None, whole=False)
        known = self._known
        gram = gramian_of(jacobian, known) if known else gramian(jacobian)
        # The diagonal holds the squared norms of the rows: this saves a pass over the Jacobian.
        self._note_numbers(None, losses, gram.diagonal().sqrt())
        weights = weights_of(gram)
        return combination(weights, jacobian, known) if known else weighted_sum(weights, jacobian)

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
        self._note_evaluation(LossEvaluation(0, None, aux), own)
        self._note_numbers(None, losses.detach())
        pairs = [(places[part.name], value) for part, value in zip(parts, gradients, strict=True)]
        apart = [pair for pair in pairs if not same_place(*pair)]
        if apart:  # one launch on CUDA
            torch._foreach_copy_([place for place, _ in apart], [value for _, value in apart])
        return direction

    def _evaluate(
        self,
        offset: Tensor | None,
        batch: int,
        tasks: Tensor | None,
        *,
        whole: bool = True,
        singles: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return Jacobian and losses; unless `whole`, the columns `_known` may be left as they were.

        With `singles`, the first so many of `tasks` have a row each; the last row is the sum over the others.
        """
        flat, own_offset = self._flat, None
        if offset is not None:
            columns = (flat.num_shared, offset.shape[1] - flat.num_shared)
            offset, own_offset = offset.split(columns, dim=1)
            own_offset = own_offset if columns[1] else None  # the heads stay
        chosen = None if tasks is None else len(tasks) if singles is None else singles + 1
        jacobian = self._next_jacobian(chosen)
        leaves, heads = self._per_task_leaves(offset, tasks), self._head_leaves(own_offset)
        mine = heads if tasks is None else {k: head.index_select(0, tasks) for k, head in heads.items()}
        # In rows of some tasks, own-row parameters are no view of the Jacobian: `scatter` writes theirs.
        placed = [part for part in flat.shared_slices if tasks is None or not part.own_row]
        places = per_task_views(placed, jacobian)
        pools = singles is not None
        parameters = PlacedParameters({**leaves, **mine}, places, whole=whole, pooled=pools)
        losses, aux = self._loss_function(parameters, batch, tasks)
        if pools and parameters.used_again:  # autograd cannot add up gradients in pooled places
            losses, aux = self._loss_function({**leaves, **mine}, batch, tasks)
        gradients = _gradients(losses, _ones_like(losses), [*leaves.values(), *heads.values()])
        of_heads = gradients[len(leaves) :]
        self._note_evaluation(LossEvaluation(batch, tasks, aux), of_heads, moved=own_offset is not None)
        factors = parameters.outer_products
        self._known = [
            OuterProducts(part.start, part.stop, *factors[part.name])
            for part in flat.shared_slices
            if part.name in factors
        ]
        for part, gradient in zip(flat.shared_slices, gradients, strict=False):
            if part.name in factors:
                continue
            if part.name not in places:
                assert tasks is not None
                scatter(jacobian[:, part.start : part.stop].view(-1, *part.shape), gradient, tasks)
            elif not same_place(gradient, places[part.name]):  # else its layer has written it
                write(places[part.name], gradient)
        return jacobian, losses.detach()

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
            values = {name: of_tasks(value, tasks) for name, value in values.items()}
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

    def _note_evaluation(
        self, evaluation: LossEvaluation, of_heads: tuple[Tensor, ...], moved: bool = False
    ) -> None:
        dtype, tasks = self.parameters.dtype, evaluation.tasks
        if moved and tasks is not None and self.evaluations:  # heads of other tasks keep their gradients
            for rows, gradient in zip(self._head_rows(self.head_gradient), of_heads, strict=True):
                own = gradient.reshape(self._num_tasks, -1).index_select(0, tasks)
                rows.index_copy_(0, tasks, own.to(dtype))
        elif moved or not self.evaluations:
            parts = [part.flatten() for part in of_heads]
            self.head_gradient = (torch.cat(parts) if parts else self._seen.new_empty(0)).to(dtype)
        if all(seen.tasks is not None for seen in self.evaluations):
            self.evaluations.append(evaluation)

    def _note_numbers(self, tasks: Tensor | None, losses: Tensor, norms: Tensor | None = None) -> None:
        """Note losses and norms [N] of the evaluated tasks, laid out as [T] with 0 for the others."""
        numbers = [losses, _ones_like(losses)] if norms is None else [losses, _ones_like(losses), norms]
        if tasks is not None:  # three launches for all of them
            rows = torch.stack(numbers)
            numbers = [*rows.new_zeros(len(rows), self._num_tasks).index_copy_(1, tasks, rows)]
        if not hasattr(self, "losses"):
            self.losses, self.evaluated = numbers[:2]
        self._blame(numbers[0])
        if norms is not None:
            self._blame(numbers[2])
            self.norms = numbers[2] if self.norms is None else self.norms

    def _blame(self, values: Tensor) -> None:
        if self._trouble is not None:
            self._trouble.add_(values, alpha=0.0)  # 0 times a number, NaN otherwise


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
