"""Runs a fixed sequence of small tensor operations on a CPU without Python between them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Solver = Callable[..., Tensor]


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
        if not on_cpu or torch.compiler.is_compiling() or not hasattr(torch.jit, "trace"):
            return solver(*tensors, **constants)
        key = (*((tensor.shape, tensor.dtype) for tensor in tensors), *constants.items())
        if key not in recorded:
            recorded[key] = _record(functools.partial(solver, **constants), tensors)
        return recorded[key](*tensors)

    return wrapper


def _record(solver: Solver, tensors: tuple[Tensor, ...]) -> Solver:
    examples = tuple(torch.ones(tensor.shape, dtype=tensor.dtype) for tensor in tensors)
    with warnings.catch_warnings(), torch.no_grad():
        # Of TorchScript's deprecation and of Python numbers, here shapes, that the recording fixes.
        warnings.simplefilter("ignore")
        result: Solver = torch.jit.trace(lambda *values: solver(*values), examples, check_trace=False)
    return result
