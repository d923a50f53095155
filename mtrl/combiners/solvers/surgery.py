"""Gradient surgery: each gradient is changed by one other gradient after the other (PCGrad, GradVac).

Only products are needed: row t of `running` holds those of task t's changed gradient with all original ones.
A CUDA device follows the sequence of each task in a block of its own.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from mtrl.combiners.solvers.backends import problem, solve
from mtrl.combiners.solvers.operations import Array

_MOST_TASKS = 1024  # of a kernel, whose blocks hold a row of the Gramian
LOST = 1e-7  # a share of a gradient below this, the root of a few units of rounding, is rounding error
SMALLEST_SINE = 1e-3  # of a target angle: turning towards it multiplies a gradient's length by up to 1000


def projected(gram: Tensor, order: Tensor) -> Tensor:
    """Return the weights [T], float64, of the mean of the gradients after PCGrad's projections.

    Row t of `order` [T, T-1] is the order in which task t's gradient meets the others. It loses its part
    along those with which its product is negative.
    """
    return _mean(solve("surgery", gram, (order,), (0.0,)))


def turned(gram: Tensor, order: Tensor, targets: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the weights [T], float64, of the mean of GradVac's gradients, and the moved targets [T, T].

    A gradient whose cosine is below the target gets enough of the other one to reach it. Targets move by the
    share `beta` towards the cosines met. Pairs with a gradient that is zero or not finite keep their target.
    """
    added, moved = solve("vaccine", gram, (order, targets), (beta,))
    return _mean(added), moved


def _mean(added: Tensor) -> Tensor:
    return added.mean(dim=0) + 1.0 / len(added)


@problem("surgery", lambda tasks: (tasks, tasks), _MOST_TASKS)
def _surgery(gram: Array, order: Array, _: float) -> Array:
    return _in_order(gram, order, lambda products, others: -products.clip(max=0.0))


@problem("vaccine", lambda tasks: (2, tasks, tasks), _MOST_TASKS)
def _vaccine(gram: Array, order: Array, targets: Array, beta: float) -> Array:
    there = gram.diagonal() > 0.0
    running, moved, tasks = there * 1.0, targets.copy(), np.arange(len(gram))

    def share(products: Array, others: Array) -> Array:
        nonlocal running
        target = targets[tasks, others]
        length = np.where(there[others] & (running > LOST), running, np.nan)
        cosine = (products / length).clip(-1.0, 1.0)
        met = target + beta * (cosine - target)
        moved[tasks, others] = np.where(np.isfinite(met), met, target)
        below = cosine < target
        # Only the part along the other gradient changes, so the part across it fixes the new length.
        across = (1.0 - cosine**2) ** 0.5
        across = np.where(across > LOST, across, 0.0) / (1.0 - target**2).clip(SMALLEST_SINE**2) ** 0.5
        before = running
        running = np.where(below, running * across, running)
        return np.where(below, before * (target * across - cosine), 0.0)

    return np.stack((_in_order(gram, order, share), moved))


def _in_order(gram: Array, order: Array, share: Callable[[Array, Array], Array]) -> Array:
    """Return [T, T]: entry [t, j] is the multiple of gradient j that is added to gradient t.

    In each step task t meets gradient `others[t]`. `share` returns the multiples [T] that are added in this
    step, given the inner products [T] of the two. It sees unit gradients, so that no product overflows.
    """
    lengths = gram.diagonal().clip(0.0) ** 0.5
    inverse = np.where(lengths > 0.0, 1.0 / lengths, 0.0)
    unit, tasks = gram * inverse[:, None] * inverse, np.arange(len(gram))
    running, added = unit.copy(), np.zeros_like(gram)
    for others in order.T:
        added[tasks, others] = step = share(running[tasks, others], others)
        running += step[:, None] * unit[others]
    found: Array = added * lengths[:, None] * inverse
    return found
