"""Adam on one tensor, such that a captured CUDA graph can hold its step."""

from __future__ import annotations

import torch
from torch import Tensor


def make_adam(
    parameter: Tensor, *, lr: float, eps: float = 1e-8, weight_decay: float = 0.0
) -> torch.optim.Adam:
    """Return fused Adam for one tensor, AdamW with weight decay; on CUDA a graph can capture its step."""
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    if not parameter.is_cuda:
        return kind([parameter], lr=lr, eps=eps, weight_decay=weight_decay, fused=True)
    step_size = torch.tensor(lr, device=parameter.device)  # a number would be frozen into the graph
    return kind([parameter], lr=step_size, eps=eps, weight_decay=weight_decay, fused=True, capturable=True)


def set_lr(optimizer: torch.optim.Adam, lr: float) -> None:
    """Change the step size, also that of steps in a captured CUDA graph."""
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def adam_step(optimizer: torch.optim.Adam, parameter: Tensor, gradient: Tensor) -> None:
    """Take a step of Adam along a gradient of the parameter's shape."""
    parameter.grad = gradient
    optimizer.step()
    parameter.grad = None
