"""Per-task gradients of anybody's model, and the combined direction put where an optimiser finds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtrl.combiners.solvers.gramian import divisor

Model = nn.Module | Tensor | Iterable[Any]
Losses = Tensor | Iterable[Tensor]  # [T], or T 0-dim tensors

NONE_USED = (
    "the losses depend on none of the parameters: pass those of the model that computed them, after any "
    "change of device or dtype that makes new ones. Parts under reentrant checkpointing need "
    "use_reentrant=False."
)


def task_jacobian(losses: Losses, parameters: Model, *, chunk_size: int | None = None) -> Tensor:
    """Return the gradients [T, P] of the losses [T] of T tasks that share parameters, for a combiner.

    Parameters that need no gradient are left out. The others make up P, in their order. A task that does not
    use one has zeros there. The graph of `losses` is freed.

    Args:
        losses: [T], or a list of T 0-dim tensors, computed from the parameters by any differentiable code.
        parameters: a module, a tensor, or several: tensors, `named_parameters()`, a generator of either.
        chunk_size: tasks per backward pass under torch.vmap; less memory, more passes. None: all. 1: ordinary
            backward passes, for operations and hooks that vmap refuses. Models compiled by torch.compile,
            sparse embeddings and anomaly detection take one task per pass whatever this says; a model to be
            compiled needs `torch._functorch.config.donated_buffer = False` for it.

    Raises:
        ValueError: losses are not a vector with a graph or use none of the parameters; no parameter needs a
            gradient, one is named twice, something else than a tensor is among them; the graph holds a
            reentrant checkpoint.
        RuntimeError: vmap refuses an operation; pass `chunk_size=1`. A model was compiled with donated
            buffers.
    """
    leaves = trainable(name_tensors(parameters))
    losses = loss_vector(losses)
    if not losses.requires_grad:
        raise ValueError(no_graph(losses))
    rows, used = jacobian_rows(losses, leaves, read_graph(losses), check_chunk(chunk_size))
    if not used:
        raise ValueError(NONE_USED)
    return rows


@contextmanager
def explain_donation() -> Iterator[None]:
    """Say what to do where a compiled model refuses the second backward pass through its graph."""
    try:
        yield
    except RuntimeError as error:
        if "donated buffers" not in str(error):
            raise
        raise RuntimeError(
            "the compiled model allows one backward pass only, and each task needs one: set "
            "torch._functorch.config.donated_buffer = False before the model is compiled, or compute the "
            f"losses with the model that is not compiled. Torch says: {error}"
        ) from error


@explain_donation()
def jacobian_rows(
    losses: Tensor, leaves: Sequence[Tensor], graph: Graph, chunk_size: int | None
) -> tuple[Tensor, bool]:
    """Return the Jacobian [T, P] of losses with this graph, and whether they use any of the parameters."""
    if graph.single or torch.is_anomaly_enabled():
        chunk_size = 1
    unit = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    blocks = unit.split(chunk_size or len(unit))
    rows, used = [], False
    for number, block in enumerate(blocks, start=1):
        keep, count = number < len(blocks), len(block)
        alone = count == 1  # an ordinary backward pass: works for all operations, and is faster
        try:
            gradients = torch.autograd.grad(
                losses,
                leaves,
                block[0] if alone else block,
                is_grads_batched=not alone,
                allow_unused=True,
                retain_graph=keep,
            )
        except RuntimeError as error:
            if alone or isinstance(error, torch.OutOfMemoryError):
                raise
            raise RuntimeError(
                "the backward pass of all tasks at once failed. If an operation or a hook is to blame that "
                "torch.vmap cannot batch (.item(), .numpy(), dropout in a checkpoint, branches on values), "
                f"pass chunk_size=1: one backward pass per task. Torch says: {error}"
            ) from error
        used = used or any(gradient is not None for gradient in gradients)
        parts = [
            leaf.new_zeros(count, leaf.numel()) if gradient is None else dense(gradient).reshape(count, -1)
            for leaf, gradient in zip(leaves, gradients, strict=True)
        ]
        rows.append(torch.cat(parts, dim=1))
    return rows[0] if len(rows) == 1 else torch.cat(rows), used


def within_range(weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return weights [T] in `dtype` over a unit, and this unit; None: 1.

    Weights of small losses exceed float16, which ends at 65504, where the weighted gradients do not.
    """
    if dtype != torch.float16:
        return weights.to(dtype), None
    unit = divisor(weights.abs().amax())
    return (weights / unit).to(dtype), unit


def times_unit(gradient: Tensor, unit: Tensor | None) -> Tensor:
    """Return a gradient of losses that were weighted over a unit, times this unit.

    Raises:
        ValueError: the product is not finite, though the gradient is.
    """
    if unit is None:
        return gradient
    product = gradient * unit.to(torch.float32)
    if bool(gradient.isfinite().all()) and not bool(product.isfinite().all()):
        raise ValueError(
            f"the weighted gradient exceeds {str(product.dtype)[6:]}: no step was taken. Compute the losses "
            "and the gradients in float32, or divide the losses by a constant."
        )
    return product


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient that may be sparse, as of nn.Embedding(sparse=True), as a dense one."""
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def is_count(value: object) -> bool:
    """Whether `value` is a positive integer, NumPy's included, and not True."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_chunk(chunk_size: int | None) -> int | None:
    """Return tasks per backward pass, None for all; raise ValueError if they are no positive integer."""
    if chunk_size is not None and not is_count(chunk_size):
        raise ValueError(f"chunk_size must be a positive number of tasks or None; found {chunk_size!r}.")
    return None if chunk_size is None else int(chunk_size)


def set_gradient(parameters: Model, direction: Tensor, *, accumulate: bool = False) -> None:
    """Put a direction [P] into `.grad` of the parameters of which `task_jacobian` took the gradients.

    Args:
        parameters: as for `task_jacobian`; a generator that it has used up is empty here.
        direction: [P]; copied.
        accumulate: add to gradients that are there, as `backward` does, instead of replacing them.

    Raises:
        ValueError: the direction has another length; parameters as for `task_jacobian`.
    """
    leaves = trainable(name_tensors(parameters))
    size = sum(leaf.numel() for leaf in leaves)
    if not isinstance(direction, Tensor) or direction.shape != (size,):
        found = list(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise ValueError(f"direction must have shape [{size}]; found {found}.")
    write_gradients(leaves, direction, accumulate=accumulate)


def write_gradients(leaves: Sequence[Tensor], direction: Tensor, *, accumulate: bool) -> None:
    """Write a direction [P] into `.grad` of tensors with P entries."""
    sizes = [leaf.numel() for leaf in leaves]
    for leaf, part in zip(leaves, direction.detach().split(sizes), strict=True):
        # With the strides of the parameter: fused optimisers go through both in the order of memory.
        own = torch.empty_like(leaf, requires_grad=False).copy_(part.view(leaf.shape))
        leaf.grad = own if leaf.grad is None or not accumulate else dense(leaf.grad) + own


def loss_vector(losses: Any, num_tasks: int | None = None) -> Tensor:
    """Return losses as one vector [T], of this T if it is given.

    Raises:
        ValueError: they are neither a vector nor several 0-dim tensors, or not one per task.
    """
    if isinstance(losses, Mapping):
        raise ValueError(
            "losses must be a vector [T] or a list of T 0-dim tensors, in the order of the tasks; found a "
            f"{type(losses).__name__}: pass list(losses.values())."
        )
    vector: Tensor
    if isinstance(losses, Tensor):
        vector = losses
    else:
        scalars = list(losses) if isinstance(losses, Iterable) else [losses]
        wrong = [item for item in scalars if not (isinstance(item, Tensor) and item.dim() == 0)]
        if wrong or not scalars:
            found = "none"
            if wrong:
                shape = f" of shape {list(wrong[0].shape)}" if isinstance(wrong[0], Tensor) else ""
                found = f"a {type(wrong[0]).__name__}{shape}"
            raise ValueError(
                f"losses must be a vector [T] or a list of T 0-dim tensors, one per task; found {found}."
            )
        with torch.enable_grad():  # they keep their graph where the caller has switched gradients off
            vector = torch.stack(scalars)
    if vector.dim() != 1 or len(vector) == 0 or not vector.is_floating_point():
        raise ValueError(no_graph(vector))
    if num_tasks not in (None, len(vector)):
        raise ValueError(f"losses must be one per task, {num_tasks}; found {len(vector)}.")
    return vector


def no_graph(losses: Tensor) -> str:
    """Return the message for losses that are no vector with a graph."""
    hint = ""
    if not losses.requires_grad:
        hint = (
            " Losses lose their graph under torch.no_grad and torch.inference_mode, by .detach() or .item(), "
            "and under reentrant checkpointing of inputs that need no gradient (use_reentrant=False)."
        )
    found = f"shape {list(losses.shape)}, requires_grad={losses.requires_grad}"
    kind = "" if losses.is_floating_point() else f", {losses.dtype}"
    return f"losses must be a vector [T], one per task, with a graph; found {found}{kind}.{hint}"


def name_tensors(parameters: Model) -> list[tuple[str, Tensor]]:
    """Return the tensors of a model with names for messages.

    Raises:
        ValueError: it is something else, or something else is among them.
    """
    if isinstance(parameters, nn.Module):
        return list(parameters.named_parameters())
    if not isinstance(parameters, Iterable):
        found = type(parameters).__name__
        raise ValueError(f"parameters must be a module, a tensor or several tensors; found a {found}.")
    named = []
    for number, item in enumerate([parameters] if isinstance(parameters, Tensor) else parameters):
        # A pair of `named_parameters()`; (weight, bias) is none.
        pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
        name, value = item if pair else (f"parameter {number}", item)
        if not isinstance(value, Tensor):
            found = type(value).__name__
            raise ValueError(
                f"parameters must be a module or tensors (several modules: nn.ModuleList([...])); found a "
                f"{found} among them."
            )
        named.append((name, value))
    return named


def trainable(named: Sequence[tuple[str, Tensor]]) -> list[Tensor]:
    """Return the tensors that need a gradient, in their order.

    Raises:
        ValueError: there is none, or one is named twice.
    """
    leaves = [leaf for _, leaf in named if leaf.requires_grad]
    if not leaves:
        raise ValueError(
            "parameters must hold at least one tensor with requires_grad=True; found none (an iterator "
            "such as model.parameters() is empty once it has been used: pass the module, or a list)."
        )
    if len({id(leaf) for leaf in leaves}) < len(leaves):
        raise ValueError("a parameter is named twice: its part of the direction would count twice.")
    return leaves


class Graph(NamedTuple):
    """What a walk through the graph of losses finds."""

    leaves: dict[int, Tensor]  # those that the losses depend on, by their ids
    single: bool  # torch.vmap cannot batch a part of it: a backward of torch.compile, a sparse embedding


def read_graph(losses: Tensor) -> Graph:
    """Walk through the graph of losses.

    Raises:
        ValueError: it holds a reentrant checkpoint, whose backward gives no gradients to its parameters here.
    """
    leaves = {id(losses): losses} if losses.is_leaf else {}  # a parameter itself, which has no node
    single = False
    seen: set[Any] = set()
    waiting: list[Any] = [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if "CheckpointFunctionBackward" in name:
            raise ValueError(REENTRANT)
        single = single or "CompiledFunction" in name or bool(getattr(node, "_saved_sparse", False))
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves[id(variable)] = variable
        waiting.extend(following for following, _ in node.next_functions)
    return Graph(leaves, single)


REENTRANT = (
    "the losses were computed with reentrant checkpointing, which gives its parameters no gradient here: "
    "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
)
