"""The kernels of a CUDA device and their launches: one for each solve, random numbers and a step of Adam.

Most kernels call the host's solver (see `operations`); surgery, random numbers and Adam are written twice.
Tests run kernels without a GPU. Loops end once the solution is reached, which costs no read on the host.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202, D103

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtrl.combiners import emtl
from mtrl.combiners.solvers import bargaining, equal, hull, projections, worst_case
from mtrl.combiners.solvers.adam import BETA1, BETA2, EPS
from mtrl.combiners.solvers.kernels_operations import compiled
from mtrl.combiners.solvers.surgery import LOST, SMALLEST_SINE

_hull, _capped = compiled(hull.hull), compiled(hull.capped)
_around, _cone = compiled(worst_case.around), compiled(worst_case.cone)
_bargain, _equal, _weigh = compiled(bargaining.bargain), compiled(equal.equal), compiled(emtl.weigh)
_projection, _unit_projection = compiled(projections.projection), compiled(projections.unit_projection)
_LOST, _LEAST = tl.constexpr(LOST), tl.constexpr(SMALLEST_SINE**2)
_BETA1, _BETA2, _EPS = tl.constexpr(BETA1), tl.constexpr(BETA2), tl.constexpr(EPS)
_BLOCK = 1024


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


@triton.jit
def _row(gram, tasks, index, number):
    """Row `number` of a symmetric Gramian in float64."""
    some = tl.load(gram + number * tasks + index, mask=index < tasks, other=0.0)
    other = tl.load(gram + index * tasks + number, mask=index < tasks, other=0.0)
    return (some.to(tl.float64) + other.to(tl.float64)) / 2.0


@triton.jit
def surgery(gram, order, targets, out, tasks, VACCINE: tl.constexpr, BETA: tl.constexpr, N: tl.constexpr):
    """Row `program_id` of what `surgery.projected` adds, or `turned` adds and makes of the targets."""
    index = tl.arange(0, N)
    task = tl.program_id(0)
    squares = tl.load(gram + index * (tasks + 1), mask=index < tasks, other=0.0).to(tl.float64)
    lengths = tl.sqrt(tl.where(squares > 0.0, squares, 0.0))
    inverse = tl.where(lengths > 0.0, 1.0 / lengths, 0.0)
    scale = tl.sum(tl.where(index == task, inverse, 0.0), 0)
    products = _row(gram, tasks, index, task) * scale * inverse
    running = tl.where(scale > 0.0, scale * 0.0 + 1.0, 0.0)
    added = inverse * 0.0
    moved = added
    if VACCINE:
        moved = tl.load(targets + task * tasks + index, mask=index < tasks, other=0.0)
    for place in range(tasks - 1):
        other = tl.load(order + task * (tasks - 1) + place)
        here = index == other
        scale = tl.sum(tl.where(here, inverse, 0.0), 0)
        row = _row(gram, tasks, index, other) * scale * inverse
        product = tl.sum(tl.where(here, products, 0.0), 0)
        if VACCINE:
            target = tl.sum(tl.where(here, moved, 0.0), 0)
            length = tl.where((scale > 0.0) & (running > _LOST), running, float("nan"))
            cosine = product / length
            cosine = tl.where(cosine > 1.0, 1.0, tl.where(cosine < -1.0, -1.0, cosine))
            met = target + BETA * (cosine - target)
            moved = tl.where(here, tl.where(tl.abs(met) < float("inf"), met, target), moved)
            sine = 1.0 - target * target
            across = tl.sqrt(1.0 - cosine * cosine)
            across = tl.where(across > _LOST, across, 0.0) / tl.sqrt(tl.where(sine > _LEAST, sine, _LEAST))
            below = cosine < target
            share = tl.where(below, running * (target * across - cosine), 0.0)
            running = tl.where(below, running * across, running)
        else:
            share = tl.where(product >= 0.0, 0.0, -product)
        added = tl.where(here, share, added)
        products += share * row
    added = added * tl.sum(tl.where(index == task, lengths, 0.0), 0) * inverse
    tl.store(out + task * tasks + index, added, mask=index < tasks)
    if VACCINE:
        tl.store(out + (tasks + task) * tasks + index, moved, mask=index < tasks)


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


def launch_hash(keys: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return the hashes of int64 keys."""
    keys = keys.contiguous()
    out = torch.empty_like(keys)
    count = keys.numel()
    hashed[(max(triton.cdiv(count, _BLOCK), 1),)](keys, step, stream, out, count, BLOCK=_BLOCK)
    return out


def launch_shuffle(items: Tensor, step: Tensor, stream: Tensor) -> Tensor:
    """Return int64 items [R, N], each row in a random order of its own."""
    items = items.contiguous()
    out = torch.empty_like(items)
    rows, columns = items.shape
    if columns > 0:
        shuffled[(rows,)](items, step, stream, out, columns, N=triton.next_power_of_2(columns))
    return out


@triton.jit
def _hash(value, step, stream):
    """`_random._hashed` of int64 numbers, with pointers to step and stream."""
    value = (value + tl.load(step) * 0x1E3779B97F4A7C15) ^ tl.load(stream)
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


@triton.jit
def hashed(keys, step, stream, out, count, BLOCK: tl.constexpr):
    """`_random._hashed`."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(keys + index, mask=index < count, other=0)
    tl.store(out + index, _hash(value, step, stream), mask=index < count)


@triton.jit
def shuffled(items, step, stream, out, columns, N: tl.constexpr):
    """Row `program_id` of `_random._sorted`."""
    first = tl.program_id(0).to(tl.int64) * columns
    index = tl.arange(0, N)
    own = _hash(first + index + 1, step, stream)
    place = index * 0
    # An item's place is the number of smaller hashes in its row. Hashes of different keys are different.
    for other in range(columns):
        place += (_hash(first + other + 1, step, stream) < own).to(tl.int32)
    within = index < columns
    tl.store(out + first + place, tl.load(items + first + index, mask=within, other=0), mask=within)


def launch_adam(
    value: Tensor, first: Tensor, second: Tensor, step: Tensor, gradient: Tensor, lr: float, decay: float
) -> None:
    """`adam.take_step`."""
    size = value.numel()
    constants = {"LR": lr, "DECAY": decay, "N": triton.next_power_of_2(size)}
    # One warp, whose threads all read the counter before one of them writes it.
    adam[(1,)](value, first, second, step, gradient.contiguous(), size, **constants, num_warps=1)


@triton.jit
def adam(value, first, second, step, gradient, size, LR: tl.constexpr, DECAY: tl.constexpr, N: tl.constexpr):
    """`adam.stepped`."""
    index = tl.arange(0, N)
    within = index < size
    count = tl.load(step) + 1.0
    before = tl.load(value + index, mask=within, other=0.0)
    given = tl.load(gradient + index, mask=within, other=0.0) + DECAY * before
    mean = tl.load(first + index, mask=within, other=0.0)
    mean += (given - mean) * (1.0 - _BETA1)
    square = tl.load(second + index, mask=within, other=0.0) * _BETA2 + given * given * (1.0 - _BETA2)
    start = 1.0 - tl.exp(tl.log(count * 0.0 + _BETA1) * count)
    start_square = 1.0 - tl.exp(tl.log(count * 0.0 + _BETA2) * count)
    root = (tl.sqrt(square / start_square) + _EPS) * start
    tl.store(first + index, mean, mask=within)
    tl.store(second + index, square, mask=within)
    tl.store(value + index, before - LR * mean / root, mask=within)
    tl.store(step, count)
