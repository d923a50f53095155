"""A step of Adam for weights that a method learns, in one launch; see `kernels`."""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201

import triton
import triton.language as tl
from torch import Tensor

from mtrl.combiners.solvers.adam import BETA1, BETA2, EPS

_BETA1, _BETA2, _EPS = tl.constexpr(BETA1), tl.constexpr(BETA2), tl.constexpr(EPS)


def launch(
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
