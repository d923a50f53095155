"""A linear layer whose backward keeps weight gradients apart by task, formed right where they are wanted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor, place: Tensor | None = None) -> Tensor:
    """Apply a linear layer to x [S, T, B, I].

    Args:
        x: inputs.
        weight: joint [S, O, I], or per task [T, S, O, I].
        bias: [S, 1 or T, O].
        place: [T, S, O, I], where the gradient of a per-task weight shall be formed (`PerTaskParameters`).
    """
    if weight.dim() == 3:
        return _joint_product(x, weight, bias)
    result: Tensor = _PerTaskLinear.apply(x, weight, bias, place)  # type: ignore[no-untyped-call]
    return result


def _joint_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    stack, tasks, batch, inputs = x.shape
    product = torch.bmm(x.reshape(stack, tasks * batch, inputs), weight.mT).view(stack, tasks, batch, -1)
    rows = bias.unsqueeze(2)
    return product + rows if torch.is_grad_enabled() else product.add_(rows)


class _PerTaskLinear(torch.autograd.Function):
    """Linear layer whose backward keeps weight gradients apart by task.

    A weight that is the same for all tasks arrives as a stride-0 expansion. Then outputs and input gradients
    are ordinary products over all T*B rows; only the weight gradients are batched over tasks, and they are
    formed right at their place, a view of the Jacobian. autograd alone would do T small products for each of
    the three.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, place: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.place, ctx.bias_tasks = place, bias.shape[1]
        if weight.stride(0) == 0:
            return _joint_product(x, weight[0], bias)
        return torch.matmul(x, weight.transpose(0, 1).mT).add_(bias.unsqueeze(2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        stack, tasks, batch, _ = x.shape
        grad_weight = weight.new_empty(weight.shape) if ctx.place is None else ctx.place
        for network in range(stack):
            torch.bmm(grad[network].mT, x[network], out=grad_weight[:, network])
        grad_bias = grad.sum(2) if ctx.bias_tasks > 1 else grad.sum((1, 2)).unsqueeze(1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            if weight.stride(0) == 0:
                grad_x = torch.bmm(grad.reshape(stack, tasks * batch, -1), weight[0]).view(x.shape)
            else:
                grad_x = torch.matmul(grad, weight.transpose(0, 1))
        return grad_x, grad_weight, grad_bias, None
