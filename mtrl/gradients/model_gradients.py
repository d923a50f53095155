"""Per-task gradients of anybody's model, wherever a combiner asks for them (`combiners.base.JacobianAt`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mtrl.gradients.task_jacobian import task_jacobian

Losses = Tensor | Iterable[Tensor]  # [T], or T 0-dim tensors


class Overflow(ArithmeticError):
    """A loss or gradient that a loss scale made non-finite: the step is to be skipped."""


class ModelGradients:
    """Evaluates losses and gradients of a model for one step of a combiner.

    Call `restore_buffers` at the end: then the modules' buffers (running statistics of a normalisation) are
    those of the first evaluation, and what a method evaluated beyond that leaves no trace in them.

    Args:
        losses: the tasks' losses with their graph, or a function of a batch's number that computes them. The
            same number within a step must mean the same batch.
        shared: trainable parameters that all tasks share.
        heads: for each task its own trainable parameters; empty: there are none.
        modules: whose buffers `restore_buffers` looks after.
        micro_batches: batches whose mean one evaluation is: k of evaluation b has the number
            b * micro_batches + k.
        scaler: scales losses before their backward pass; gradients are scaled back.
        distributed: average losses and gradients over all processes.
        batched: see `task_jacobian`.

    Attributes:
        losses: [T], detached, of the first evaluation.
        head_gradients: for each head the gradients of its parameters, of the last evaluation that a method
            made for them.
    """

    losses: Tensor

    def __init__(
        self,
        losses: Losses | Callable[[int], Losses],
        shared: Sequence[Tensor],
        heads: Sequence[Sequence[Tensor]],
        modules: Sequence[nn.Module],
        *,
        micro_batches: int = 1,
        scaler: torch.amp.GradScaler | None = None,
        distributed: bool = False,
        batched: bool = True,
    ) -> None:
        self._function = losses if callable(losses) else None
        self._given = None if callable(losses) else _vector(losses)
        self._shared, self._heads, self._modules = shared, heads, modules
        self._micro_batches = micro_batches
        self._scaler, self._distributed, self._batched = scaler, distributed, batched
        self._evaluated = False
        self._kept: list[Tensor] = []
        self.head_gradients: list[list[Tensor]] = [[torch.zeros_like(p) for p in head] for head in heads]

    @property
    def parameters(self) -> Tensor:
        """Shared parameters [P], detached."""
        return torch.cat([leaf.detach().flatten() for leaf in self._shared])

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """Parameters of the heads and their gradients [T, h]; zeros fill up heads that are smaller."""
        if not self._heads:
            none = self.losses.new_zeros(len(self.losses), 0)
            return none, none
        return _padded(self._heads, self.parameters), _padded(self.head_gradients, self.parameters)

    def __call__(self, offset: Tensor | None = None, batch: int = 0, tasks: Tensor | None = None) -> Tensor:
        """Return the Jacobian [T, P], or [N, P] of `tasks`; see `JacobianAt`.

        Moved parameters cost one forward and one backward pass per task, since tasks move differently.
        """
        if offset is not None:
            return self._moved(offset, batch)
        total: Tensor | None = None
        for losses in self._micro_losses(batch):
            self._note_heads(losses, batch)
            chosen = losses if tasks is None else losses[tasks]
            rows = self._unscaled(task_jacobian(self._scaled(chosen), self._shared, batched=self._batched))
            total = rows if total is None else total + rows
        assert total is not None
        return self._mean(total / self._micro_batches)

    def weighted(self, weights_of: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the gradient [P] of `weights_of(losses) @ losses` by one backward pass per micro-batch."""
        whole_first = self._micro_batches > 1 or self._distributed  # weights belong to the whole batch
        weights = weights_of(self.evaluate()) if whole_first else None
        total = torch.zeros_like(self.parameters)
        for losses in self._micro_losses(0):
            self._note_heads(losses, 0)
            if weights is None:
                weights = weights_of(losses.detach())
            whole = weights.detach().to(losses.dtype) @ losses
            gradients = torch.autograd.grad(
                self._scaled(whole), self._shared, retain_graph=self._given is not None, allow_unused=True
            )
            total += self._unscaled(_flat(gradients, self._shared))
        return self._mean(total / self._micro_batches)

    @torch.no_grad()
    def evaluate(self) -> Tensor:
        """Return the losses [T] at the parameters as they are now."""
        if self._given is not None and not self._evaluated:
            return self._mean(self._given.detach())
        if not self._evaluated:
            self._kept = self._buffers()
        parts = [_vector(self._called(number)) for number in range(self._micro_batches)]
        if not self._evaluated:
            self.restore_buffers()  # the evaluation that counts is still to come
        return self._mean(torch.stack(parts).mean(dim=0))

    def _micro_losses(self, batch: int) -> Iterator[Tensor]:
        """Losses with their graph, micro-batch by micro-batch; the first time their mean is kept."""
        first = not self._evaluated
        values = []
        for number in range(batch * self._micro_batches, (batch + 1) * self._micro_batches):
            losses = None if batch > 0 else self._given
            if losses is None:
                losses = _vector(self._called(number))
            values.append(losses.detach())
            yield losses
        if first:
            self._evaluated = True
            self._kept = self._buffers()
            self.losses = self._finite(self._mean(torch.stack(values).mean(dim=0)))

    def _called(self, number: int) -> Losses:
        return self._require_function()(number)

    def _require_function(self) -> Callable[[int], Losses]:
        if self._function is None:
            raise ValueError(
                "this method evaluates losses more than once in a step: pass a function that computes them "
                "for the number of a batch, not the losses."
            )
        return self._function

    def _note_heads(self, losses: Tensor, batch: int) -> None:
        """Add a micro-batch's gradients of the heads, of which each depends on one task's loss alone."""
        if self._evaluated or batch > 0 or not any(self._heads):
            return
        leaves = [leaf for head in self._heads for leaf in head]
        gradients = iter(
            torch.autograd.grad(self._scaled(losses.sum()), leaves, retain_graph=True, allow_unused=True)
        )
        for own in self.head_gradients:
            for place in own:
                gradient = next(gradients)
                if gradient is not None:
                    place += self._mean(self._unscaled(gradient) / self._micro_batches)

    def _moved(self, offset: Tensor, batch: int) -> Tensor:
        self._require_function()
        shared, own_offset = offset.tensor_split([sum(leaf.numel() for leaf in self._shared)], dim=1)
        heads_move = bool(self._heads) and own_offset.shape[1] > 0
        rows = []
        for task in range(len(self.losses)):
            head = self._heads[task] if self._heads else []
            before = [leaf.detach().clone() for leaf in [*self._shared, *head]]
            with torch.no_grad():
                _add(self._shared, shared[task])
                if heads_move:
                    _add(head, own_offset[task])
            row = torch.zeros_like(self.parameters)
            own = [torch.zeros_like(leaf) for leaf in head]
            for losses in self._micro_losses(batch):
                leaves = [*self._shared, *head]
                gradients = torch.autograd.grad(self._scaled(losses[task]), leaves, allow_unused=True)
                row += self._unscaled(_flat(gradients[: len(self._shared)], self._shared))
                for place, gradient in zip(own, gradients[len(self._shared) :], strict=True):
                    if gradient is not None:
                        place += self._unscaled(gradient)
            with torch.no_grad():
                for leaf, value in zip([*self._shared, *head], before, strict=True):
                    leaf.copy_(value)
            rows.append(row)
            if heads_move:
                self.head_gradients[task] = [self._mean(place / self._micro_batches) for place in own]
        return self._mean(torch.stack(rows) / self._micro_batches)

    def _scaled(self, losses: Tensor) -> Tensor:
        return losses if self._scaler is None else self._scaler.scale(losses)

    def _unscaled(self, gradient: Tensor) -> Tensor:
        if self._scaler is None:
            return gradient
        return self._finite(gradient / self._scaler.get_scale())

    def _finite(self, values: Tensor) -> Tensor:
        if self._scaler is not None and not bool(values.isfinite().all()):
            raise Overflow
        return values

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        if not self._distributed:
            return values
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values / torch.distributed.get_world_size()

    def restore_buffers(self) -> None:
        """Put the modules' buffers back to what they were after the first evaluation."""
        # At the end and not at once: a backward pass may still need them as its forward pass left them.
        with torch.no_grad():
            for buffer, value in zip(self._all_buffers(), self._kept, strict=bool(self._kept)):
                buffer.copy_(value)

    def _buffers(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._all_buffers()]

    def _all_buffers(self) -> list[Tensor]:
        return [buffer for module in self._modules for buffer in module.buffers()]


def _vector(losses: Losses) -> Tensor:
    return losses if isinstance(losses, Tensor) else torch.stack(list(losses))


def _flat(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> Tensor:
    parts = [
        torch.zeros_like(leaf) if gradient is None else gradient
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]
    return torch.cat([part.flatten() for part in parts])


def _add(leaves: Sequence[Tensor], offset: Tensor) -> None:
    sizes = [leaf.numel() for leaf in leaves]
    for leaf, part in zip(leaves, offset[: sum(sizes)].split(sizes), strict=True):
        leaf.add_(part.view(leaf.shape))


def _padded(heads: Sequence[Sequence[Tensor]], like: Tensor) -> Tensor:
    rows = [torch.cat([like[:0], *(part.detach().flatten() for part in head)]) for head in heads]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)
