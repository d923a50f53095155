"""One optimiser step of anybody's multi-task model with any combiner."""

import copy
import inspect
import math
import zlib
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.combiners import Combiner, LossCombiner
from mtrl.gradients.model_gradients import ModelGradients
from mtrl.gradients.processes import Overflow, Processes
from mtrl.gradients.scope import Scope, all_finite, held_by, plain_step, scope_of
from mtrl.gradients.task_jacobian import Losses, Model, check_chunk, dense, is_count


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
    chunk_size: int | None = None,
    accumulate: bool = False,
) -> Tensor:
    """Take one step along the combined gradients of T tasks, right for every method; return the losses [T].

    A step gives each method what it needs beyond one Jacobian: losses after the step (`famo`), gradients at
    moved parameters (`fs_mtl`), independent batches (`modo`), a step that bypasses the optimiser (`adatask`).
    It moves the trainable parameters of `model` and `heads`. Parameters that only the optimiser holds stay,
    whatever is in their `.grad`. With `accumulate` they move, too, if they have a gradient. Nothing has moved
    when it raises a ValueError, except one about losses after the step.

    Args:
        combiner: of `make_combiner`, for T tasks; keep it from step to step.
        losses: the losses [T] with their graph, or a function that computes them for the number of a batch:
            0, and up to `combiner.num_batches` * `micro_batches` - 1 where a method or accumulation takes
            more. It may be called several times in a step. The same number must give the same batch; torch's
            generators are set so that it gives the same dropout.
        model: the parameters that all tasks share, or the module that holds them and nothing else. Frozen
            parameters are left alone. A parameter that no loss uses gets a gradient of 0.
        optimizer: holds all these parameters and those of the heads. Parameters of a second optimiser get no
            `.grad` here, so heads held only by it are not trained; a warning says so once.
        heads: for each task the module or parameters that it alone uses. They step by their own task's
            gradient, which no method weighs. A head may be frozen or empty.
        max_norm: bound on the norm of the whole gradient that the optimiser steps by, heads included; unused
            by methods that replace the optimiser's update rule (`adatask`, `m_config`).
        micro_batches: number of batches whose mean is one step's batch. Their Jacobians are averaged
            before they are combined, so do not divide the losses by their number. Adding up combined
            directions would be another method.
        scaler: of automatic mixed precision. Methods see gradients without the scale. An overflow skips the
            step and lowers the scale, as without a combiner. This function calls `scaler.step` and
            `scaler.update`: take backward passes of other losses with this scaler afterwards, but for those
            of gradients that `accumulate` adds to.
        distributed: average losses and Jacobians over the processes of the default group, so that all combine
            alike. Models are plain modules with equal parameters, not DistributedDataParallel. If a process
            fails or overflows, none of them steps. A process without labels returns losses of 0.
        chunk_size: see `task_jacobian`.
        accumulate: add the combined gradient to the gradients that are there (of a regulariser, say) instead
            of replacing them; all gradients of the optimiser then count, and zeroing them is up to you. With
            a scaler they must carry its scale, as `scaler.scale(loss).backward()` gives them.

    Raises:
        ValueError: as `combiner.combine` and `task_jacobian`; arguments of other types; non-finite losses or
            gradients without a scaler; losses were given where a function is needed; the optimiser lacks
            parameters, needs a closure or holds parameters of the losses that are neither in `model` nor in
            `heads`; a parameter is in `model` and in a head; a method needs what no step can give it
            (`inverse_alpha`: temperatures).
        RuntimeError: as `task_jacobian` (vmap refuses: pass `chunk_size=1`), or another process failed.
    """
    _check_call(combiner, losses, optimizer, max_norm, micro_batches, accumulate)
    max_norm = None if max_norm is None else float(max_norm)
    micro_batches, chunk_size = int(micro_batches), check_chunk(chunk_size)
    if scaler is not None and not hasattr(scaler, "is_enabled"):
        raise ValueError(f"scaler must be a torch.amp.GradScaler or None; found {scaler!r}.")
    scaler = scaler if scaler is not None and scaler.is_enabled() else None
    processes = Processes(distributed, _device(optimizer))
    scope = processes.together(lambda: scope_of(combiner, model, heads, optimizer))
    held = held_by(optimizer)
    processes.check_equal(
        trainable_parameters=sum(leaf.numel() for leaf in scope.leaves),
        parameters_of_the_optimizer=len(held),
        micro_batches=micro_batches,
        accumulate=accumulate,
        trainable_layers_by_checksum=_checksum([(scope.name(leaf), leaf.shape) for leaf in scope.leaves]),
        method_and_max_norm_by_checksum=_checksum((combiner.name, max_norm)),
    )
    if scaler is not None:
        scaler.scale(scope.shared[0].new_zeros(()))  # makes the scale, also where there is no loss to scale
    combiner.partition(scope.module_sizes)
    combiner.abandon_step()  # of an earlier call that raised before the losses after its step
    gradients = processes.together(
        lambda: ModelGradients(
            losses,
            scope,
            combiner.num_tasks,
            micro_batches=micro_batches,
            scaler=scaler,
            processes=processes,
            chunk_size=chunk_size,
        )
    )
    half = scaler is not None and any(leaf.dtype == torch.float16 for leaf in held)
    state = _state_of(combiner, large=half)  # a scaler may refuse gradients in half precision
    try:
        if accumulate and scaler is None:
            processes.together(lambda: scope.check_accumulated(held))
        direction = _direction(combiner, gradients)
        scope.check_finite(direction.unsqueeze(0), gradients.head_gradients)
        if accumulate:
            processes.average_gradients(held)
        with scope.only(hide_others=not accumulate, keep=accumulate or scaler is not None):
            _move(combiner, gradients, scope, optimizer, direction, max_norm, scaler, add=accumulate)
    except BaseException as error:
        gradients.close(taken=False)
        if state is not None:
            combiner.load_state_dict(state)
        if not isinstance(error, Overflow):
            raise
        _skip(scope, optimizer, scaler)
        # Without losses the overflow was in the first evaluation.
        return gradients.losses if hasattr(gradients, "losses") else gradients.evaluate()
    try:
        if combiner.looks_again:
            after = gradients.evaluate()
            if scaler is None or all_finite(after):
                combiner.after_step(after)
            else:  # with a scaler an overflow is no error
                combiner.abandon_step()
    finally:
        gradients.close(taken=True)
    scope.warn_of_others(gradients.leaves)
    return gradients.losses


def _check_call(
    combiner: Combiner,
    losses: object,
    optimizer: object,
    max_norm: object,
    micro_batches: int,
    accumulate: bool,
) -> None:
    if not isinstance(combiner, Combiner):
        raise ValueError(f"combiner must be one that mtrl.make_combiner returns; found {combiner!r}.")
    if not hasattr(optimizer, "param_groups"):  # an optimiser that wraps another one need not derive
        raise ValueError(f"optimizer must be a torch.optim.Optimizer; found {optimizer!r}.")
    bound = isinstance(max_norm, Real) and not isinstance(max_norm, bool) and float(max_norm) > 0.0
    if max_norm is not None and not bound:
        raise ValueError(f"max_norm must be a number above 0 or None; found {max_norm!r}.")
    if not is_count(micro_batches):
        raise ValueError(f"micro_batches must be a positive integer; found {micro_batches!r}.")
    if callable(losses) and not _takes_one(losses):
        raise ValueError(
            "losses is called with the number of a batch and must take it: `lambda batch: ...`; found "
            f"{losses!r}, which does not."
        )
    reason = ""
    if combiner.looks_again:
        reason = f"{combiner.name} looks at the losses after the step, too"
    elif micro_batches > 1:
        reason = f"micro_batches={micro_batches} takes the losses of several batches"
    if reason and not callable(losses):
        raise ValueError(
            f"{reason}: pass a function that computes them for the number of a batch, not the losses."
        )
    if accumulate and combiner.preconditioned:
        raise ValueError(
            f"{combiner.name} is an optimiser of its own, which sees no gradients but those of the tasks: "
            "accumulate=True cannot add others. Make them a task, or use another method."
        )


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind(0)
    except ValueError:  # built in: it has no signature to look at
        return True
    except TypeError:
        return False
    return True


def _checksum(value: object) -> int:
    return zlib.crc32(repr(value).encode())


def _device(optimizer: torch.optim.Optimizer) -> torch.device:
    devices = (leaf.device for leaf in held_by(optimizer))
    return next(devices, torch.device("cpu"))  # one that holds nothing is refused by `scope_of`


def _direction(combiner: Combiner, gradients: ModelGradients) -> Tensor:
    if isinstance(combiner, LossCombiner) and combiner.weights_suffice:
        return gradients.weighted(combiner.weights)
    return combiner.direction(gradients)


def _state_of(combiner: Combiner, *, large: bool) -> dict[str, Any] | None:
    """Return a copy of a method's state, to be put back if no step is taken: a few vectors.

    Unless `large`, None for methods with numbers for each parameter. They change their state once all
    gradients are there, and after that little refuses a step.
    """
    if combiner.keeps_rows and not large:
        return None
    return copy.deepcopy(combiner.state_dict())  # an extra state may be anything


def _skip(scope: Scope, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Let the scaler find an overflow: it skips the optimiser's step and lowers the scale."""
    assert scaler is not None
    with scope.only():
        for leaf in scope.leaves:
            leaf.grad = torch.full_like(leaf, torch.inf)
        scaler.unscale_(optimizer)  # by itself `step` would not look at gradients once more
        scaler.step(optimizer)
        scaler.update()
        for leaf in scope.leaves:
            leaf.grad = None


def _move(
    combiner: Combiner,
    gradients: ModelGradients,
    scope: Scope,
    optimizer: torch.optim.Optimizer,
    direction: Tensor,
    max_norm: float | None,
    scaler: torch.amp.GradScaler | None,
    *,
    add: bool,
) -> None:
    scale = 1.0 if scaler is None else scaler.get_scale()  # the scaler's step divides by it
    own = None if combiner.preconditioned else direction
    scope.put(own, gradients.head_gradients, add=add, scale=scale)
    moving = [leaf for leaf in held_by(optimizer) if leaf.grad is not None]
    if scaler is not None:
        if add and not all(all_finite(dense(leaf.grad)) for leaf in moving if leaf.grad is not None):
            raise Overflow  # of the gradients that were there
        stand_in = [] if moving else scope.shared[:1]  # its scale grows only if it has seen a gradient
        for leaf in stand_in:
            leaf.grad = torch.zeros_like(leaf)
        scaler.unscale_(optimizer)  # it may refuse, so this comes before anything moves
        for leaf in stand_in:
            leaf.grad = None
    if combiner.preconditioned:
        plain_step(scope, direction, optimizer)
    elif max_norm is not None and math.isfinite(max_norm):
        nn.utils.clip_grad_norm_(moving, max_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
