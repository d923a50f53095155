"""The solvers as one kernel each on CUDA, where Triton is there (it comes with torch) and they agree.

Hundreds of tiny kernels per solve, even in a graph, take longer than the rest of an update.
"""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mtrl.combiners.solvers import traced as _traced

_DEVICES = ("cuda",)
_LARGEST = 64  # tasks; beyond, a matrix no longer fits the registers of one program
_TOLERANCE = 1e-6  # of weights, between kernels and tensor operations, where the solution is unique
_trusted: dict[torch.device, bool] = {}


def usable(matrix: Tensor) -> bool:
    """Whether kernels may solve for this matrix [..., T, T]; the first call on a device tries them out."""
    device = matrix.device
    if device.type not in _DEVICES or matrix.dim() != 2 or len(matrix) > _LARGEST:
        return False
    if _traced.is_transformed(matrix):
        return False
    if device not in _trusted:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # compiling and comparing talk to the host
        _trusted[device] = _agree(device)
    return _trusted[device]


def minimise_root(
    matrix: Tensor, linear: Tensor, normal: Tensor, start: Tensor | None, iterations: int, **constants: float
) -> Tensor:
    """Return `solvers.simplex.minimise_root` for M [T, T], q [T] and a normal [T]."""
    linear = linear.to(torch.float64)
    first = linear if start is None else start.to(torch.float64)
    tensors = (matrix, linear, normal.to(torch.float64), first)
    return _run("root_kernel", tensors, iterations, HAS_START=start is not None, **constants)


def minimise_quadratic(matrix: Tensor, iterations: int, **constants: float) -> Tensor:
    """Return `solvers.simplex.minimise_quadratic` for M [T, T]."""
    return _run("quadratic_kernel", (matrix,), iterations, **constants)


def bargaining_weights(matrix: Tensor, iterations: int, **constants: float) -> Tensor:
    """Return `solvers.bargaining.bargaining_weights` for M [T, T] and alpha = 1."""
    return _run("bargaining_kernel", (matrix,), iterations, **constants)


def _run(kernel: str, tensors: tuple[Tensor, ...], iterations: int, **constants: Any) -> Tensor:
    tasks = len(tensors[0])
    padded = max(1 << (tasks - 1).bit_length(), 2)
    result = torch.empty(tasks, dtype=torch.float64, device=tensors[0].device)
    inputs = [tensor.to(torch.float64).contiguous() for tensor in tensors]
    warps = 1 if padded <= 16 else 4 if padded <= 32 else 8
    launch = getattr(_kernels(), kernel)[(1,)]
    launch(*inputs, result, tasks, iterations, N=padded, num_warps=warps, **constants)
    return result


def _kernels() -> ModuleType:
    from mtrl.combiners.solvers import triton as _triton  # needs Triton, which torch for a CPU comes without

    return _triton


def _agree(device: torch.device) -> bool:
    """Whether the kernels compile, run and give what the tensor operations give on a CPU."""
    from mtrl.combiners.solvers.bargaining import bargaining_weights as bargain
    from mtrl.combiners.solvers.simplex import minimise_quadratic as quadratic
    from mtrl.combiners.solvers.simplex import minimise_root as root

    rows = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gram, ridge = rows @ rows.T, 1e-6
    linear = gram.mean(dim=1) / gram.mean().sqrt()
    with _traced.plain():
        expected = root(gram, linear), quadratic(gram), bargain(gram, ridge=ridge)
    _trusted[device] = True  # for the calls below
    try:
        there = gram.to(device)
        found = root(there, linear.to(device)), quadratic(there), bargain(there, ridge=ridge)
        # Once per device, before any graph: the only place where a solve waits for the host.
        same = all(
            torch.allclose(ours.cpu(), theirs, rtol=_TOLERANCE, atol=_TOLERANCE)
            for ours, theirs in zip(found, expected, strict=True)
        )
        problem = "they disagree with the tensor operations"
    except ImportError:
        return False  # no Triton: nothing that a user could expect
    except Exception as error:  # noqa: BLE001 - compilers and drivers raise what they like
        same, problem = False, f"{type(error).__name__}: {error}"
    if not same:
        warnings.warn(
            f"solvers run as tensor operations instead of as Triton kernels, which is slower: {problem}",
            RuntimeWarning,
            stacklevel=2,
        )
    return same
