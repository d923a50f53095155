"""A step of Adam for the weights that a method learns: a dozen operations on a CPU, one kernel on CUDA."""

import torch
from torch import Tensor

from mtrl.combiners.solvers.backends import has_kernels, has_numbers

# Adam's defaults (Kingma and Ba, ICLR 2015), used by all methods that learn their weights.
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def take_step(
    value: Tensor, first: Tensor, second: Tensor, step: Tensor, gradient: Tensor, lr: float, decay: float
) -> None:
    """Move `value` [size] against `gradient` in place, and with it the moments and `step` [1]; all float64.

    `decay` is the share of `value` that is added to its gradient (L2 form).
    """
    take = stepped if has_numbers(gradient) else _adam
    take(value, first, second, step, gradient, lr, decay)


def stepped(
    value: Tensor, first: Tensor, second: Tensor, step: Tensor, gradient: Tensor, lr: float, decay: float
) -> None:
    """`take_step` in torch's operations."""
    if decay > 0.0:
        gradient = torch.add(gradient, value, alpha=decay)
    step.add_(1.0)
    first.lerp_(gradient, 1.0 - BETA1)
    second.mul_(BETA2).addcmul_(gradient, gradient, value=1.0 - BETA2)
    root = (second / (1.0 - BETA2**step)).sqrt_().add_(EPS)
    value.addcdiv_(first, root.mul_(1.0 - BETA1**step), value=-lr)


# One launch on CUDA instead of a dozen.
@torch.library.custom_op("mtrl::adam", mutates_args=("value", "first", "second", "step"))
def _adam(
    value: Tensor, first: Tensor, second: Tensor, step: Tensor, gradient: Tensor, lr: float, decay: float
) -> None:
    if not has_kernels(value):
        stepped(value, first, second, step, gradient, lr, decay)
        return
    from mtrl.combiners.solvers.kernels import launch_adam

    with torch.cuda.device_of(value):
        launch_adam(value, first, second, step, gradient, lr, decay)


@_adam.register_fake
def _(value: Tensor, first: Tensor, second: Tensor, step: Tensor, gradient: Tensor, *numbers: float) -> None:
    return None
