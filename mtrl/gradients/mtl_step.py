"""One optimiser step of anybody's multi-task model with any combiner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner, LossCombiner
from mtrl.gradients.model_gradients import Losses, ModelGradients, Overflow
from mtrl.gradients.task_jacobian import Model, set_gradient, trainable


def mtl_step(
    combiner: Combiner,
    losses: Losses | Callable[[int], Losses],
    model: Model,
    optimizer: torch.optim.Optimizer,
    *,
    heads: Sequence[Model] = (),
    max_norm: float | None = None,
    micro_batches: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    distributed: bool = False,
    batched: bool = True,
) -> Tensor:
    """Take one step along the combined gradients of T tasks, right for every method; return the losses [T].

    Gradients that are there are replaced. What a method needs beyond one Jacobian is seen to: losses after
    the step (`famo`), gradients at moved parameters (`fs_mtl`), independent batches (`modo`), a step that is
    no gradient for another optimiser (`adatask`).

    Args:
        combiner: of `make_combiner`, for as many tasks; keep it from step to step.
        losses: the losses [T] with their graph, or a function that computes them for the number of a batch:
            0, and up to `combiner.num_batches` * `micro_batches` - 1 where a method or accumulation takes
            more. It may be called several times in a step, and the same number must give the same batch.
        model: the parameters that all tasks share, or the module that holds them and nothing else. Frozen
            ones are left alone; one that no loss uses gets a gradient of 0.
        optimizer: of all these parameters and those of the heads.
        heads: for each task the module or parameters that it alone uses; they step by their own task's
            gradient, as no method weighs them.
        max_norm: bound on the norm of the whole gradient, heads included; none for an optimiser's step.
        micro_batches: batches whose mean is one step's batch: their Jacobians are added up before they are
            combined, which accumulating combined directions would not be.
        scaler: of automatic mixed precision. Methods see gradients without the scale, and an overflow skips
            the step and lowers the scale, as without a combiner.
        distributed: average losses and Jacobians over the processes of the default group, so that all of them
            combine alike. Models are plain modules with equal parameters, not DistributedDataParallel.
        batched: see `task_jacobian`.

    Raises:
        ValueError: as `combiner.combine` and `task_jacobian`; a method needs a function and was given losses,
            or something else than a step can give it (`inverse_alpha`: temperatures).
    """
    shared = trainable(model)
    own = [trainable(head) for head in heads]
    if own and len(own) != combiner.num_tasks:
        raise ValueError(f"heads must be one per task, {combiner.num_tasks}; found {len(own)}.")
    if combiner.looks_again and not callable(losses):
        raise ValueError(
            f"{combiner.name} looks at the losses after the step, too: pass a function that computes them "
            "for the number of a batch, not the losses."
        )
    combiner.partition(_module_sizes(model, shared))
    modules = [part for part in (model, *heads) if isinstance(part, nn.Module)]
    gradients = ModelGradients(
        losses,
        shared,
        own,
        modules,
        micro_batches=micro_batches,
        scaler=scaler,
        distributed=distributed,
        batched=batched,
    )
    leaves = [*shared, *(leaf for head in own for leaf in head)]
    try:
        direction = _direction(combiner, gradients)
    except Overflow:
        for leaf in leaves:
            leaf.grad = torch.full_like(leaf, torch.inf)
        _optimizer_step(optimizer, leaves, None, scaler, scaled=True)
        return gradients.losses if hasattr(gradients, "losses") else gradients.evaluate()
    _put(direction, shared, own, gradients)
    if combiner.preconditioned:
        _plain_step(optimizer, shared)
        max_norm = None
    _optimizer_step(optimizer, leaves, max_norm, scaler)
    if combiner.looks_again:
        combiner.after_step(gradients.evaluate())
    gradients.restore_buffers()
    return gradients.losses


def _module_sizes(model: Model, shared: Sequence[Tensor]) -> list[int]:
    """How many of the shared parameters, in their order, each submodule has; of bare tensors each is one."""
    named = model.named_parameters() if isinstance(model, nn.Module) else ()
    owners: dict[int, object] = {id(leaf): name.rpartition(".")[0] for name, leaf in named}
    modules = groupby(shared, key=lambda leaf: owners.get(id(leaf), id(leaf)))
    return [sum(leaf.numel() for leaf in own) for _, own in modules]


def _direction(combiner: Combiner, gradients: ModelGradients) -> Tensor:
    if isinstance(combiner, LossCombiner):
        return gradients.weighted(combiner.weights)
    return combiner.direction(gradients)


def _put(
    direction: Tensor, shared: list[Tensor], heads: list[list[Tensor]], gradients: ModelGradients
) -> None:
    set_gradient(shared, direction)
    for head, own in zip(heads, gradients.head_gradients, strict=True):
        for leaf, gradient in zip(head, own, strict=True):
            leaf.grad = gradient


@torch.no_grad()
def _plain_step(optimizer: torch.optim.Optimizer, shared: list[Tensor]) -> None:
    """Step along gradients that are an optimiser's step already; the optimiser gets none of them."""
    rates = {id(leaf): group["lr"] for group in optimizer.param_groups for leaf in group["params"]}
    for leaf in shared:
        if id(leaf) not in rates:
            raise ValueError("the optimizer must hold all shared parameters: their step size is read there.")
        assert leaf.grad is not None
        leaf.sub_(rates[id(leaf)] * leaf.grad)
        leaf.grad = None


def _optimizer_step(
    optimizer: torch.optim.Optimizer,
    leaves: list[Tensor],
    max_norm: float | None,
    scaler: torch.amp.GradScaler | None,
    *,
    scaled: bool = False,
) -> None:
    moving = [leaf for leaf in leaves if leaf.grad is not None]
    if max_norm is not None and math.isfinite(max_norm):
        nn.utils.clip_grad_norm_(moving, max_norm)
    if scaler is None:
        optimizer.step()
        return
    if not moving:
        return  # a scaler has nothing to look at
    for leaf in moving:
        if not scaled:
            assert leaf.grad is not None
            leaf.grad.mul_(scaler.get_scale())  # which its step divides by
    scaler.step(optimizer)
    scaler.update()
