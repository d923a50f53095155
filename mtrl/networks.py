"""Actor and twin critics as pure functions of named parameters, evaluated for all tasks at once.

Shapes: S stacked networks (actor 1, twin critics 2), T tasks, B batch per task, H width. Shared parameters
come either joint, `[S, ...]`, or with a leading task axis, `[T, S, ...]`, one value per task: the second form
is what makes per-task gradients (and FS-MTL's per-task perturbations) one batched pass instead of T passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = Mapping[str, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
}
LOG_STD_RANGE = (-20.0, 2.0)  # SAC's customary bounds, also those of both lines of published runs


class MLPSpec(NamedTuple):
    """Architecture of S stacked multi-layer perceptrons."""

    stack: int
    num_tasks: int
    inputs: int
    outputs: int
    width: int
    depth: int
    activation: str
    layer_norm: bool
    one_hot: bool  # the first layer sees the task identity
    per_task_heads: bool
    head_range: float  # output layer initialised uniformly in +-head_range


def initial_parameters(
    spec: MLPSpec, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return shared parameters `[S, ...]` and task heads `[T, S, ...]` (empty with a shared head).

    Hidden layers: He-uniform weights, zero biases; output layer: uniform in +-head_range, zero bias
    (initialisation of the public Meta-World+ code). The one-hot task identity counts as inputs.
    """

    def uniform(shape: tuple[int, ...], bound: float) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound

    stack, tasks, width = spec.stack, spec.num_tasks, spec.width
    shared: dict[str, Tensor] = {}
    fan_in = spec.inputs + (tasks if spec.one_hot else 0)
    inputs = spec.inputs
    for layer in range(spec.depth):
        bound = math.sqrt(6.0 / fan_in)
        shared[f"{layer}.weight"] = uniform((stack, width, inputs), bound)
        shared[f"{layer}.bias"] = torch.zeros(stack, width)
        if layer == 0 and spec.one_hot:
            shared["0.task"] = uniform((stack, tasks, width), bound)
        fan_in = inputs = width
    lead = (tasks, stack) if spec.per_task_heads else (stack,)
    head = {
        "head.weight": uniform((*lead, spec.outputs, width), spec.head_range),
        "head.bias": torch.zeros(*lead, spec.outputs),
    }
    return (shared, head) if spec.per_task_heads else (shared | head, {})


def mlp(spec: MLPSpec, parameters: Parameters, inputs: Tensor) -> Tensor:
    """Map inputs [T, B, I] to outputs [S, T, B, outputs]."""
    activation = ACTIVATIONS[spec.activation]
    x = inputs.expand(spec.stack, *inputs.shape)
    for layer in range(spec.depth):
        x = linear(x, parameters[f"{layer}.weight"], parameters[f"{layer}.bias"])
        if layer == 0 and spec.one_hot:
            x = x + _own_task(parameters["0.task"])
        if spec.layer_norm:
            # No gain and bias: the next layer can take their part, and they cost more than the norm itself.
            x = F.layer_norm(x, (spec.width,))
        x = activation(x)
    return linear(x, parameters["head.weight"], parameters["head.bias"])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer to x [S, T, B, I]: weight [S, O, I] or [T, S, O, I], bias [S, O] or [T, S, O]."""
    if weight.dim() == 3:
        stack, tasks, batch, inputs = x.shape
        flat = torch.baddbmm(bias.unsqueeze(1), x.reshape(stack, tasks * batch, inputs), weight.mT)
        return flat.view(stack, tasks, batch, -1)
    result: Tensor = _PerTaskLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _PerTaskLinear(torch.autograd.Function):
    """Linear layer whose backward keeps weight gradients apart by task.

    A weight that is the same for all tasks arrives as a stride-0 expansion. Then outputs and input gradients
    are ordinary products over all T*B rows; only the weight gradients are batched over tasks. autograd alone
    would do T small products for each of the three.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        stack, tasks, batch, inputs = x.shape
        ctx.save_for_backward(x, weight)
        if weight.stride(0) == 0:
            flat = torch.baddbmm(bias[0].unsqueeze(1), x.reshape(stack, tasks * batch, inputs), weight[0].mT)
        else:
            rows = bias.transpose(0, 1).reshape(stack * tasks, 1, -1)
            flat = torch.baddbmm(rows, x.reshape(stack * tasks, batch, inputs), _stack_major(weight).mT)
        return flat.view(stack, tasks, batch, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        stack, tasks, batch, inputs = x.shape
        by_task = grad.reshape(stack * tasks, batch, -1)
        grad_weight = torch.bmm(by_task.mT, x.reshape(stack * tasks, batch, inputs))
        grad_bias = grad.sum(2).transpose(0, 1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            if weight.stride(0) == 0:
                grad_x = torch.bmm(grad.reshape(stack, tasks * batch, -1), weight[0])
            else:
                grad_x = torch.bmm(by_task, _stack_major(weight))
            grad_x = grad_x.view(x.shape)
        return grad_x, grad_weight.view(stack, tasks, -1, inputs).transpose(0, 1), grad_bias


def _stack_major(weight: Tensor) -> Tensor:
    """[T, S, O, I] -> [S*T, O, I], the batch order of activations."""
    return weight.transpose(0, 1).reshape(-1, *weight.shape[2:])


def _own_task(embedding: Tensor) -> Tensor:
    """Row t of the identity columns for task t: [S, T, H] or [T, S, T, H] -> [S, T, 1, H]."""
    if embedding.dim() == 4:
        embedding = embedding.diagonal(dim1=0, dim2=2).movedim(-1, 1)
    return embedding.unsqueeze(2)


class SampledAction(NamedTuple):
    """A reparametrised sample of the tanh-squashed Gaussian policy."""

    action: Tensor  # [T, B, A] in (-1, 1)
    log_prob: Tensor  # [T, B] in nats


def sample_action(spec: MLPSpec, parameters: Parameters, obs: Tensor, noise: Tensor) -> SampledAction:
    """Sample actions for obs [T, B, O] from standard normal noise [T, B, A] (SAC, eq. 11 and appendix C)."""
    mean, log_std = mlp(spec, parameters, obs)[0].chunk(2, dim=-1)
    log_std = log_std.clamp(*LOG_STD_RANGE)
    before_tanh = mean + log_std.exp() * noise
    gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), finite for every u.
    squash = 2 * (math.log(2.0) - before_tanh - F.softplus(-2 * before_tanh))
    return SampledAction(torch.tanh(before_tanh), (gaussian - squash).sum(-1))


def mode_action(spec: MLPSpec, parameters: Parameters, obs: Tensor) -> Tensor:
    """Deterministic action [T, B, A]: tanh of the Gaussian's mean."""
    return torch.tanh(mlp(spec, parameters, obs)[0].chunk(2, dim=-1)[0])


def q_values(spec: MLPSpec, parameters: Parameters, obs: Tensor, action: Tensor) -> Tensor:
    """Both critics' values [2, T, B] of obs [T, B, O] and action [T, B, A]."""
    return mlp(spec, parameters, torch.cat((obs, action), dim=-1)).squeeze(-1)
