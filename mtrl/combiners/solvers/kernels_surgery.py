"""Kernels of the solver that changes gradients one after the other; see `kernels` and `surgery`."""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202

import triton
import triton.language as tl

from mtrl.combiners.solvers.surgery import LOST, SMALLEST_SINE

_LOST = tl.constexpr(LOST)
_LEAST = tl.constexpr(SMALLEST_SINE**2)


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
    products = _row(gram, tasks, index, task)
    zero = products * 0.0
    added = tl.where(index < tasks, 0.0, zero)
    square = tl.sum(tl.where(index == task, products, 0.0), 0)
    running = tl.sqrt(tl.where(square > 0.0, square, 0.0))
    least = _LOST * running
    moved = added
    if VACCINE:
        moved = tl.load(targets + task * tasks + index, mask=index < tasks, other=0.0)
    for place in range(tasks - 1):
        other = tl.load(order + task * (tasks - 1) + place)
        row = _row(gram, tasks, index, other)
        here = index == other
        product = tl.sum(tl.where(here, products, 0.0), 0)
        square = tl.sum(tl.where(here, row, 0.0), 0)
        if VACCINE:
            target = tl.sum(tl.where(here, moved, 0.0), 0)
            length = tl.sqrt(tl.where(square > 0.0, square, 0.0))
            cosine = product / tl.where(running > least, running * length, float("nan"))
            cosine = tl.where(cosine > 1.0, 1.0, tl.where(cosine < -1.0, -1.0, cosine))
            met = target + BETA * (cosine - target)
            moved = tl.where(here, tl.where(tl.abs(met) < float("inf"), met, target), moved)
            sine = 1.0 - target * target
            across = tl.sqrt(1.0 - cosine * cosine) / tl.sqrt(tl.where(sine > _LEAST, sine, _LEAST))
            below = cosine < target
            share = tl.where(below, running / length * (target * across - cosine), 0.0)
            running = tl.where(below, running * across, running)
        else:
            share = tl.where(product >= 0.0, 0.0, -product) / tl.where(square > 0.0, square, 1.0)
        added = tl.where(here, share, added)
        products += share * row
    tl.store(out + task * tasks + index, added, mask=index < tasks)
    if VACCINE:
        tl.store(out + (tasks + task) * tasks + index, moved, mask=index < tasks)
