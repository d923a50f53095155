"""Runs a fixed sequence of small tensor operations on a CPU without Python between them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_plain = False


@contextmanager
def plain() -> Iterator[None]:
    """Have solvers run their own operations here: for a caller that records or transforms these itself."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def chunks(total: int, first: int, then: int) -> Iterator[int]:
    """Split a number of steps into `first` of them and `then` at a time."""
    size, left = first, total
    while left > 0:
        yield min(size, left)
        left, size = left - size, then


def converged(measure: Tensor, bound: float) -> bool:
    """Whether the steps that are left would change nothing, because a 0-dim measure is below a bound.

    Asked on a CPU only, where reading a number costs as much as one operation; False wherever it would make a
    device wait or hide a branch from a recording, a compiler or torch.vmap: there all steps are taken.
    """
    if measure.device.type != "cpu" or is_transformed(measure):
        return False
    return bool(measure < bound)


def is_transformed(tensor: Tensor) -> bool:
    """Whether operations on this tensor are being recorded, compiled or batched by somebody else."""
    if _plain or torch.compiler.is_compiling():
        return True
    try:
        tensor.data_ptr()
    except RuntimeError:  # how the tensors of torch.vmap refuse
        return True
    return False


def traced(solver: Callable[P, R]) -> Callable[P, R]:
    """Have TorchScript repeat the operations that `solver(*tensors, **constants)` makes on a CPU.

    The operations and their results are those of `solver`, which must not branch on values; hundreds of calls
    on tiny tensors take half the time. On other devices, where a graph is captured, and under torch.compile
    `solver` itself runs; also with a torch that no longer has TorchScript.
    """
    recorded: dict[Any, Callable[..., R]] = {}

    @functools.wraps(solver)
    def wrapper(*tensors: P.args, **constants: P.kwargs) -> R:
        values: tuple[Any, ...] = tensors
        on_cpu = all(tensor.device.type == "cpu" for tensor in values)
        if _plain or not on_cpu or torch.compiler.is_compiling() or not hasattr(torch.jit, "trace"):
            return solver(*tensors, **constants)
        key = (*((tensor.shape, tensor.dtype) for tensor in values), *constants.items())
        if key not in recorded:
            recorded[key] = record(functools.partial(solver, **constants), values)
        return recorded[key](*values)

    return wrapper


def record(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Return TorchScript's recording of `function(*tensors)`, which must not branch on values."""
    examples = tuple(torch.ones(tensor.shape, dtype=tensor.dtype) for tensor in tensors)
    with warnings.catch_warnings(), torch.no_grad():
        # Of TorchScript's deprecation and of Python numbers, here shapes, that the recording fixes.
        warnings.simplefilter("ignore")
        result: Callable[..., Any] = torch.jit.trace(
            lambda *values: function(*values), examples, check_trace=False
        )
    return result
