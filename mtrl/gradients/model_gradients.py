"""Per-task gradients of anybody's model, wherever a combiner asks for them (`combiners.JacobianAt`)."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from mtrl.gradients.buffers import Buffers
from mtrl.gradients.processes import Overflow, Processes, Result
from mtrl.gradients.random_states import random_states, replayed
from mtrl.gradients.scope import Scope, all_finite
from mtrl.gradients.task_jacobian import (
    NONE_USED,
    REENTRANT,
    Graph,
    Losses,
    dense,
    explain_donation,
    jacobian_rows,
    loss_vector,
    no_graph,
    read_graph,
    times_unit,
    within_range,
)

# Parameters that are known to be unused; no reentrant checkpoint hides them.
_UNUSED = WeakIdKeyDictionary()


class ModelGradients:
    """Evaluates losses and gradients of a model for one step of a combiner.

    Call `close` at the end. The first evaluation moves the modules' buffers (running statistics of a
    normalisation), and further evaluations leave no trace in them. All evaluations of one batch within a
    step start from the same buffers and draw the same random numbers from torch's generators, so that dropout
    keeps its mask.

    Args:
        losses: the tasks' losses with their graph, or a function of a batch's number that computes them.
        scope: the parameters.
        num_tasks: T.
        micro_batches: number k of batches whose mean one evaluation is. Evaluation b takes the batches from
            b * k to b * k + k - 1.
        scaler: scales losses before their backward pass; gradients are scaled back.
        processes: over which losses and gradients are averaged; None: this one alone.
        chunk_size: tasks per backward pass of a Jacobian; None: all.

    Attributes:
        losses: [T], detached, of the first evaluation.
        head_gradients: for each head the gradients of its parameters, of the first evaluation or of the last
            one at moved heads.
        leaves: what the losses of the first evaluation depend on, by their ids.
    """

    losses: Tensor

    def __init__(
        self,
        losses: Losses | Callable[[int], Losses],
        scope: Scope,
        num_tasks: int,
        *,
        micro_batches: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        processes: Processes | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self._function = losses if callable(losses) else None
        self._given = None if callable(losses) else loss_vector(losses, num_tasks)
        self._scope, self._num_tasks, self._micro_batches = scope, num_tasks, micro_batches
        self._device = scope.shared[0].device
        self._processes = processes or Processes(False, self._device)
        self._scaler, self._chunk_size = scaler, chunk_size
        self._evaluated = False
        self.leaves: dict[int, Tensor] = {}
        self._used = self._heads_used = False  # whether any loss has depended on shared parameters, on heads
        self._buffers = Buffers(scope.modules, scope.leaves)
        self._random: dict[int, list[Tensor]] = {}  # number of a batch -> states of the generators
        self.head_gradients: list[list[Tensor]] = [
            [torch.zeros_like(p) for p in head] for head in scope.heads
        ]

    @property
    def parameters(self) -> Tensor:
        """Shared parameters [P], detached."""
        return torch.cat([leaf.detach().flatten() for leaf in self._scope.shared])

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """Parameters of the heads and their gradients [T, h]; smaller heads are filled up with zeros."""
        if not self._scope.heads:
            none = self.losses.new_zeros(len(self.losses), 0)
            return none, none
        return _padded(self._scope.heads, self.parameters), _padded(self.head_gradients, self.parameters)

    def __call__(self, offset: Tensor | None = None, batch: int = 0, tasks: Tensor | None = None) -> Tensor:
        """Return the Jacobian [T, P], or [N, P] of `tasks`; see `JacobianAt`.

        Moved parameters cost one forward and one backward pass per task, since tasks move differently.
        """
        if offset is not None:
            return self._moved(offset, batch, range(self._num_tasks) if tasks is None else tasks.tolist())
        count = self._num_tasks if tasks is None else len(tasks)
        return self._rows(batch, lambda losses: losses if tasks is None else losses[tasks], count)

    def pooled(self, order: Tensor, singles: int) -> Tensor:
        """Return gradients of some tasks and of the mean loss of the others; see `JacobianAt`."""

        def chosen(losses: Tensor) -> Tensor:
            alone, others = losses[order].tensor_split([singles])
            return torch.cat((alone, others.mean(0, keepdim=True)))

        return self._rows(0, chosen, singles + 1)

    def _rows(self, batch: int, chosen: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Return the gradients [N, P] of the N = `count` losses that `chosen` makes of the tasks' losses."""

        def rows(losses: Tensor, graph: Graph) -> Tensor:
            scaled = self._scaled(chosen(losses))
            jacobian, used = jacobian_rows(scaled, self._scope.shared, graph, self._chunk_size)
            self._used |= used
            return self._unscaled(jacobian)

        return self._evaluate(batch, rows, count)

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient [P] of `weights_of(losses) @ losses` by one backward pass per micro-batch."""
        weights: Tensor | None = None
        if self._micro_batches > 1 or self._processes.several:  # weights belong to the whole batch
            weights = weights_of(self._checked(self.evaluate()))

        def row(losses: Tensor, graph: Graph) -> Tensor:
            nonlocal weights
            if weights is None:
                weights = weights_of(losses.detach())
            parts, unit = within_range(weights.detach(), losses.dtype)
            whole = (parts * losses).sum()  # no product of matrices, which autocast would round
            gradients = torch.autograd.grad(self._scaled(whole), self._scope.shared, allow_unused=True)
            self._used |= any(gradient is not None for gradient in gradients)
            gradient = self._unscaled(_flat(gradients, self._scope.shared))
            return times_unit(gradient, unit).unsqueeze(0)

        return self._evaluate(0, row, 1)[0]

    def evaluate(self) -> Tensor:
        """Return the losses [T] at the parameters as they are now, averaged over the processes.

        A graph is built, because losses that contain derivatives need one.
        """

        def whole() -> Tensor:
            if self._given is not None:
                return self._given.detach()
            # Each graph goes before the next one comes.
            parts = [self._called(number).detach() for number in self._numbers(0)]
            return torch.stack(parts).mean(dim=0)

        with self._buffers.unmoved():
            self._buffers.start(0)
            losses = self._together(whole)
        return self._mean_losses(losses)

    def _evaluate(self, batch: int, backward: Callable[[Tensor, Graph], Tensor], rows: int) -> Tensor:
        """Return the mean of `backward(losses, their graph)` [rows, P] over micro-batches and processes.

        In one process losses must have a graph. Among several processes one may lack it, which is a process
        without labels: it adds zeros and makes the same collective calls.
        """
        first = not self._evaluated

        def local() -> tuple[Tensor, Tensor]:
            total: Tensor | None = None
            values = []
            if not first:
                self._buffers.start(batch)
            for number in self._numbers(batch):
                losses = self._losses_of(number)
                values.append(losses.detach())
                if first:
                    self._buffers.keep()
                if losses.requires_grad:
                    graph = self._read(losses, batch)
                    if first:
                        self._add_heads(losses)
                    part = backward(losses, graph) / self._micro_batches
                    total = part if total is None else total + part
                if first:
                    self._buffers.restore()  # the backward pass of a checkpoint runs its module again
            if total is None:
                total = self.parameters.new_zeros(rows, self.parameters.numel())
            return total, torch.stack(values).mean(dim=0)

        with nullcontext() if first else self._buffers.unmoved():
            total, values = self._together(local)
        if first:
            self._finish_first(values)
        return self._finite(self._processes.mean(total))

    def _together(self, action: Callable[[], Result]) -> Result:
        """Return `action()` as `Processes` does, with gradients, which the caller may have switched off."""
        with torch.enable_grad():
            return self._processes.together(action)

    def _finite(self, rows: Tensor) -> Tensor:
        """Return rows [N, P] if they and the gradients of the heads are finite.

        The message names parameters: one NaN in the backward pass can spoil all rows, so tasks would mislead.
        """
        self._scope.check_finite(rows, self.head_gradients)
        return rows

    def _finish_first(self, values: Tensor) -> None:
        self._evaluated = True
        self.losses = self._checked(self._mean_losses(values))
        unused = [leaf for leaf in self._scope.shared if id(leaf) not in self.leaves and leaf not in _UNUSED]
        # Losses without any graph are those of a process without labels, which hides nothing.
        looks = bool(unused and self.leaves and self._function is not None)
        used, heads_used, look = self._processes.any(self._used, self._heads_used, looks)
        if look:
            self._look_for_checkpoints(unused if looks else ())
        if not used:
            raise ValueError(NONE_USED)
        if not heads_used and any(self._scope.heads):
            raise ValueError(NONE_USED.replace("the parameters", "the parameters of the heads"))
        self.head_gradients = [[self._processes.mean(place) for place in own] for own in self.head_gradients]
        self._scope.note_alone(self.head_gradients)

    def _mean_losses(self, losses: Tensor) -> Tensor:
        """Return the mean of losses [T] over the processes, in a type that all of them agree on."""
        if not self._processes.several:
            return losses
        # A process without labels may return zeros of another type or on another device than the others.
        dtype = torch.promote_types(self._scope.shared[0].dtype, torch.float32)
        return self._processes.mean(losses.to(self._device, dtype))

    def _numbers(self, batch: int) -> range:
        """Return the numbers of the micro-batches of a batch."""
        return range(batch * self._micro_batches, (batch + 1) * self._micro_batches)

    def _losses_of(self, number: int) -> Tensor:
        """Return the losses [T] of a micro-batch, finite and with their graph."""
        losses = self._given if number == 0 and self._given is not None else self._called(number)
        if not (losses.requires_grad or self._processes.several):
            raise ValueError(no_graph(losses))
        return self._checked(losses)

    def _called(self, number: int) -> Tensor:
        """Return the losses [T] of a batch, with the random numbers of its first evaluation in this step."""
        function = self._require_function()
        # A block of autocast around the step keeps its casts of parameters, which have moved since.
        torch.clear_autocast_cache()
        if number not in self._random:
            self._random[number] = random_states(self._device)
            return loss_vector(function(number), self._num_tasks)
        with replayed(self._random[number], self._device):
            return loss_vector(function(number), self._num_tasks)

    def _require_function(self) -> Callable[[int], Losses]:
        if self._function is None:
            raise ValueError(
                "this method evaluates losses more than once in a step: pass a function that computes them "
                "for the number of a batch, not the losses."
            )
        return self._function

    def _checked(self, losses: Tensor) -> Tensor:
        """Return losses that are finite. Others are refused before a backward pass spreads them."""
        if all_finite(losses.detach()):
            return losses
        if self._scaler is not None:
            raise Overflow
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        raise ValueError(f"losses of tasks {bad} are not finite: no step was taken. Fix or drop these tasks.")

    def _read(self, losses: Tensor, batch: int) -> Graph:
        graph = read_graph(losses)
        if batch == 0 and not self._evaluated:
            self._scope.check_graph(graph)
            self._scope.check_heads(losses, graph)
            self.leaves |= graph.leaves
        return graph

    def _look_for_checkpoints(self, unused: Sequence[Tensor]) -> None:
        """Refuse a reentrant checkpoint that no graph shows, since its inputs need no gradient.

        Torch warns of it in the forward pass. Where parameters are unused, one more evaluation looks for that
        warning, once in the life of a parameter. All processes take part in it: layers may communicate.
        """

        def look() -> None:
            with warnings.catch_warnings(record=True, action="always") as caught:
                self._buffers.start(0)
                self._called(0)
            if any("None of the inputs have requires_grad=True" in str(found.message) for found in caught):
                raise ValueError(REENTRANT)

        with self._buffers.unmoved():
            self._together(look if self._function is not None else lambda: None)
        for leaf in unused:
            _UNUSED[leaf] = True

    @explain_donation()
    def _add_heads(self, losses: Tensor) -> None:
        """Add a micro-batch's gradients of the heads, each of which depends on its own task's loss alone."""
        leaves = [leaf for head in self._scope.heads for leaf in head]
        if not leaves:
            return
        found = torch.autograd.grad(self._scaled(losses.sum()), leaves, retain_graph=True, allow_unused=True)
        places = [place for head in self.head_gradients for place in head]
        for place, gradient in zip(places, found, strict=True):
            if gradient is not None:
                self._heads_used = True
                place += self._unscaled(dense(gradient)) / self._micro_batches

    def _moved(self, offset: Tensor, batch: int, tasks: Sequence[int]) -> Tensor:
        self._require_function()
        size = sum(leaf.numel() for leaf in self._scope.shared)
        shared, own_offset = offset.tensor_split([size], dim=1)
        moves_heads = bool(self._scope.heads) and own_offset.shape[1] > 0

        def local() -> list[tuple[Tensor, list[Tensor]]]:
            return [
                self._moved_row(task, shared[task], own_offset[task] if moves_heads else None, batch)
                for task in tasks
            ]

        with self._buffers.unmoved():
            found = self._together(local)
        if moves_heads:
            for task, (_, own) in zip(tasks, found, strict=True):
                self.head_gradients[task] = [self._processes.mean(place) for place in own]
        return self._finite(self._processes.mean(torch.stack([row for row, _ in found])))

    def _moved_row(
        self, task: int, offset: Tensor, own_offset: Tensor | None, batch: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Return a task's gradients of shared parameters [P] and of its head, at moved parameters."""
        shared = self._scope.shared
        head = self._scope.heads[task] if self._scope.heads else []
        leaves = [*shared, *head]
        before = [leaf.detach().clone() for leaf in leaves]
        row = torch.zeros_like(self.parameters)
        own = [torch.zeros_like(leaf) for leaf in head]
        try:
            with torch.no_grad():
                _add(shared, offset)
                if own_offset is not None:
                    _add(head, own_offset)
            self._buffers.start(batch)
            for number in self._numbers(batch):
                losses = self._losses_of(number)
                if not losses.requires_grad:
                    continue
                gradients = torch.autograd.grad(self._scaled(losses[task]), leaves, allow_unused=True)
                row += self._unscaled(_flat(gradients[: len(shared)], shared)) / self._micro_batches
                for place, gradient in zip(own, gradients[len(shared) :], strict=True):
                    if gradient is not None:
                        place += self._unscaled(dense(gradient)) / self._micro_batches
        finally:
            with torch.no_grad():
                for leaf, value in zip(leaves, before, strict=True):
                    leaf.copy_(value)
        return row, own

    def _scaled(self, losses: Tensor) -> Tensor:
        return losses if self._scaler is None else self._scaler.scale(losses)

    def _unscaled(self, gradient: Tensor) -> Tensor:
        if self._scaler is None:
            return gradient
        if not all_finite(gradient):
            raise Overflow
        return gradient / self._scaler.get_scale()

    def close(self, *, taken: bool) -> None:
        """End the step. Unless it was `taken`, restore the modules' buffers."""
        if not taken:
            self._buffers.start(0)
        torch.clear_autocast_cache()


def _flat(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Tensor:
    pairs = zip(gradients, leaves, strict=True)
    parts = [torch.zeros_like(leaf) if gradient is None else dense(gradient) for gradient, leaf in pairs]
    return torch.cat([part.flatten() for part in parts])


def _add(leaves: Sequence[Tensor], offset: Tensor) -> None:
    sizes = [leaf.numel() for leaf in leaves]
    for leaf, part in zip(leaves, offset[: sum(sizes)].split(sizes), strict=True):
        leaf.add_(part.view(leaf.shape))


def _padded(heads: Sequence[Sequence[Tensor]], like: Tensor) -> Tensor:
    rows = [torch.cat([like[:0], *(part.detach().flatten() for part in head)]) for head in heads]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)
