"""Per-task gradients of anybody's model, and the combined direction put where an optimiser finds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Model = nn.Module | Tensor | Iterable[Any]


def task_jacobian(losses: Tensor | Iterable[Tensor], parameters: Model, *, batched: bool = True) -> Tensor:
    """Gradients [T, P] of the losses [T] of T tasks that share parameters: what a combiner takes.

    Parameters that need no gradient are left out, the others make up P in their order; a task that does not
    use one has zeros there. The graph of `losses` is freed.

    Args:
        losses: [T], or a list of T 0-dim tensors, computed from the parameters by any differentiable code.
        parameters: a module, a tensor, or several: tensors, `named_parameters()`, a generator of either.
        batched: one backward for all tasks. False: one per task, for operations that torch.vmap refuses;
            taken by itself where the losses come from a model that torch.compile has compiled.

    Raises:
        ValueError: losses are not a vector with a graph or use none of the parameters; no parameter needs a
            gradient, one is named twice, something else than a tensor is among them.
    """
    leaves = trainable(parameters)
    losses = _as_vector(losses)
    batched = batched and not _compiled(losses)
    unit = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    rows, used = [], False
    for block in (unit,) if batched else unit:
        gradients = torch.autograd.grad(
            losses, leaves, block, is_grads_batched=batched, allow_unused=True, retain_graph=not batched
        )
        used = used or any(gradient is not None for gradient in gradients)
        count = len(unit) if batched else 1
        parts = [
            leaf.new_zeros(count, leaf.numel()) if gradient is None else gradient.reshape(count, -1)
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ]
        rows.append(torch.cat(parts, dim=1))
    if not used:
        raise ValueError(
            "the losses depend on none of the parameters: pass those of the model that computed them, after "
            "any change of device or dtype that makes new ones."
        )
    return torch.cat(rows)


def set_gradient(parameters: Model, direction: Tensor, *, accumulate: bool = False) -> None:
    """Put a direction [P] into `.grad` of the parameters of which `task_jacobian` took the gradients.

    Args:
        parameters: as for `task_jacobian`; an iterator that it has used up is empty here.
        direction: [P]; copied.
        accumulate: add to gradients that are there, as `backward` does, instead of replacing them.

    Raises:
        ValueError: the direction has another length; parameters as for `task_jacobian`.
    """
    leaves = trainable(parameters)
    sizes = [leaf.numel() for leaf in leaves]
    if direction.shape != (sum(sizes),):
        raise ValueError(f"direction must have shape [{sum(sizes)}]; found {list(direction.shape)}.")
    for leaf, part in zip(leaves, direction.detach().split(sizes), strict=True):
        own = part.view(leaf.shape).to(leaf.dtype, copy=True)
        leaf.grad = own if leaf.grad is None or not accumulate else leaf.grad + own


def _as_vector(losses: Tensor | Iterable[Tensor]) -> Tensor:
    if not isinstance(losses, Tensor):
        scalars = list(losses)
        if not scalars or not all(isinstance(loss, Tensor) and loss.dim() == 0 for loss in scalars):
            raise ValueError("losses must be a vector [T] or a list of T 0-dim tensors, one per task.")
        losses = torch.stack(scalars)
    if losses.dim() != 1 or not losses.requires_grad:
        found = f"shape {list(losses.shape)}, requires_grad={losses.requires_grad}"
        raise ValueError(f"losses must be a vector [T], one per task, with a graph; found {found}.")
    return losses


def trainable(parameters: Model) -> list[Tensor]:
    """Return the tensors that need a gradient, in their order.

    Raises:
        ValueError: there is none, one is named twice, or something else is among them.
    """
    leaves = [leaf for leaf in _tensors(parameters) if leaf.requires_grad]
    if not leaves:
        raise ValueError(
            "parameters must hold at least one tensor with requires_grad=True; found none (an iterator "
            "such as model.parameters() is empty once it has been used: pass the module, or a list)."
        )
    if len({id(leaf) for leaf in leaves}) < len(leaves):
        raise ValueError("a parameter is named twice: its part of the direction would count twice.")
    return leaves


def _tensors(parameters: Model) -> Iterator[Tensor]:
    if isinstance(parameters, nn.Module):
        yield from parameters.parameters()
        return
    for item in [parameters] if isinstance(parameters, Tensor) else parameters:
        value = item[1] if isinstance(item, tuple) and len(item) == 2 else item  # (name, parameter)
        if not isinstance(value, Tensor):
            raise ValueError(
                f"parameters must be a module or tensors; found a {type(value).__name__} among them."
            )
        yield value


def _compiled(losses: Tensor) -> bool:
    """Whether the graph of the losses holds a compiled backward, which torch.vmap cannot batch."""
    seen: set[Any] = set()
    waiting = [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if "CompiledFunction" in node.name():
            return True
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
    return False
