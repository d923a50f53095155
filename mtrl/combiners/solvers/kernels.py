"""The kernels that solve problems on a CUDA device, one launch per solve, and their launches.

A kernel reads a problem, calls the solver of its host (see `operations`), and writes what it returns. Tests
run kernels without a GPU. Loops end as soon as the solution is reached, which costs no read on the host.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, D103

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mtrl.combiners import emtl
from mtrl.combiners.solvers import bargaining, equal, hull, projections, worst_case
from mtrl.combiners.solvers.kernels_operations import compiled
from mtrl.combiners.solvers.kernels_surgery import surgery

_hull, _capped = compiled(hull.hull), compiled(hull.capped)
_around, _cone = compiled(worst_case.around), compiled(worst_case.cone)
_bargain, _equal, _weigh = compiled(bargaining.bargain), compiled(equal.equal), compiled(emtl.weigh)
_projection, _unit_projection = compiled(projections.projection), compiled(projections.unit_projection)


@triton.jit
def _gramian(gram, tasks, N: tl.constexpr):
    """A symmetric Gramian in float64, with zeros beyond the tasks."""
    index = tl.arange(0, N)
    within = (index[:, None] < tasks) & (index[None, :] < tasks)
    some = tl.load(gram + index[:, None] * tasks + index[None, :], mask=within, other=0.0)
    other = tl.load(gram + index[None, :] * tasks + index[:, None], mask=within, other=0.0)
    return (some.to(tl.float64) + other.to(tl.float64)) / 2.0


@triton.jit
def _read(vector, tasks, N: tl.constexpr):
    index = tl.arange(0, N)
    return tl.load(vector + index, mask=index < tasks, other=0.0)


@triton.jit
def _write(out, values, count):
    index = tl.arange(0, values.shape[0])
    tl.store(out + index, values, mask=index < count)


@triton.jit
def hull_kernel(gram, out, tasks, TOLERANCE: tl.constexpr, N: tl.constexpr):
    _write(out, _hull(_gramian(gram, tasks, N), tasks, TOLERANCE), tasks)


@triton.jit
def capped_kernel(gram, out, tasks, CAP: tl.constexpr, TOLERANCE: tl.constexpr, N: tl.constexpr):
    _write(out, _capped(_gramian(gram, tasks, N), tasks, CAP, TOLERANCE), tasks)


@triton.jit
def around_kernel(
    gram,
    reference,
    factor,
    out,
    tasks,
    C: tl.constexpr,
    TOLERANCE: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    N: tl.constexpr,
):
    scale = tl.full([], 1.0, tl.float64)
    if HAS_FACTOR:
        scale = tl.load(factor)
    weights, dual = _around(_gramian(gram, tasks, N), _read(reference, tasks, N), tasks, scale, C, TOLERANCE)
    _write(out, weights, tasks)
    _write(out + tasks, dual, tasks)


@triton.jit
def cone_kernel(gram, out, tasks, C: tl.constexpr, TOLERANCE: tl.constexpr, N: tl.constexpr):
    _write(out, _cone(_gramian(gram, tasks, N), tasks, C, TOLERANCE), tasks + 3)


@triton.jit
def bargain_kernel(
    gram,
    out,
    tasks,
    ALPHA: tl.constexpr,
    RIDGE: tl.constexpr,
    ADDED: tl.constexpr,
    BOUND: tl.constexpr,
    STEPS: tl.constexpr,
    N: tl.constexpr,
):
    _write(out, _bargain(_gramian(gram, tasks, N), tasks, ALPHA, RIDGE, ADDED, BOUND, STEPS), tasks)


@triton.jit
def equal_kernel(gram, out, tasks, PROJECTED: tl.constexpr, RIDGE: tl.constexpr, N: tl.constexpr):
    _write(out, _equal(_gramian(gram, tasks, N), tasks, PROJECTED, RIDGE), tasks)


@triton.jit
def emtl_kernel(
    cosines, lengths, losses, out, tasks, LAM: tl.constexpr, TOLERANCE: tl.constexpr, N: tl.constexpr
):
    given = _gramian(cosines, tasks, N)
    _write(
        out, _weigh(given, _read(lengths, tasks, N), _read(losses, tasks, N), tasks, LAM, TOLERANCE), tasks
    )


@triton.jit
def projection_kernel(gram, wanted, out, tasks, RIDGE: tl.constexpr, N: tl.constexpr):
    _write(out, _projection(_gramian(gram, tasks, N), _read(wanted, tasks, N), tasks, RIDGE), tasks)


@triton.jit
def projections_kernel(gram, out, tasks, RIDGE: tl.constexpr, N: tl.constexpr):
    program = tl.program_id(0)
    unit = tl.where(tl.arange(0, N) == program, tl.full([], 1.0, tl.float64), 0.0)
    _write(out + program * tasks, _unit_projection(_gramian(gram, tasks, N), unit, tasks, RIDGE), tasks)


# The kernel of a problem of `backends.PROBLEMS`, and whether it takes a program for each task instead of one.
_KERNELS = {
    "hull": (hull_kernel, False),
    "capped": (capped_kernel, False),
    "around": (around_kernel, False),
    "cone": (cone_kernel, False),
    "bargain": (bargain_kernel, False),
    "equal": (equal_kernel, False),
    "emtl": (emtl_kernel, False),
    "cone_projection": (projection_kernel, False),
    "cone_weights": (projections_kernel, True),
    "surgery": (surgery, True),
    "vaccine": (surgery, True),
}


def launch(name: str, gram: Tensor, vectors: Sequence[Tensor], numbers: Sequence[float], out: Tensor) -> None:
    """Solve a problem of `backends.PROBLEMS` for a contiguous Gramian [T, T] into `out`, by one launch."""
    kernel, programs, tensors, constants = planned(name, gram, vectors, numbers)
    kernel[(programs,)](*tensors, out, len(gram), **constants)


def planned(
    name: str, gram: Tensor, vectors: Sequence[Tensor], numbers: Sequence[float]
) -> tuple[Any, int, tuple[Tensor, ...], dict[str, Any]]:
    """Return the kernel of a problem, its number of programs, its inputs, and its constants and options."""
    kernel, by_task = _KERNELS[name]
    tasks, inputs = len(gram), (gram, *vectors)
    # Flags and counts are whole numbers, which a kernel needs as such.
    values = [int(number) if number == int(number) else number for number in numbers]
    if name in ("around", "surgery", "vaccine"):  # which have two vectors, one or none
        inputs = (gram, vectors[0], vectors[-1]) if vectors else (gram, gram, gram)
    if name in ("surgery", "vaccine"):
        values = [name == "vaccine", *values]
    names = kernel.arg_names[len(inputs) + 2 : -1]  # behind the output and the number of tasks
    # The tableau of a path has two rows more than tasks, and a cone is one more task.
    size = triton.next_power_of_2(max(tasks + {"cone": 3, "surgery": 0, "vaccine": 0}.get(name, 2), 2))
    # So many warps that a matrix [N, N] and its tableau stay in registers: 32 of a thread's 255 each at most.
    options = {"N": size, "num_warps": max(1, min(size, 64) ** 2 // 512)}
    return kernel, tasks if by_task else 1, inputs, {**dict(zip(names, values, strict=True)), **options}
