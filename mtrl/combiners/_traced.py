"""Runs a fixed sequence of small tensor operations on a CPU without Python between them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Solver = Callable[..., Tensor]

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


def traced(solver: Solver) -> Solver:
    """Have TorchScript repeat the operations that `solver(*tensors, **constants)` makes on a CPU.

    The operations and their results are those of `solver`, which must not branch on values; a solve of
    hundreds of calls on tiny tensors takes half the time. On other devices, where a graph is captured, and
    under torch.compile `solver` itself runs; also with a torch that no longer has TorchScript.
    """
    recorded: dict[Any, Solver] = {}

    @functools.wraps(solver)
    def wrapper(*tensors: Tensor, **constants: Any) -> Tensor:
        on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
        if _plain or not on_cpu or torch.compiler.is_compiling() or not hasattr(torch.jit, "trace"):
            return solver(*tensors, **constants)
        key = (*((tensor.shape, tensor.dtype) for tensor in tensors), *constants.items())
        if key not in recorded:
            recorded[key] = record(functools.partial(solver, **constants), tensors)
        return recorded[key](*tensors)

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
