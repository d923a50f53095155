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
