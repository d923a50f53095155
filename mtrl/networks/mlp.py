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
TASK_EMBEDDING = "0.task"  # [S, T, H]; per task, row t for task t: [T, S, H]
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
            shared[TASK_EMBEDDING] = uniform((stack, tasks, width), bound)
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
        weight, bias = parameters[f"{layer}.weight"], _rows(parameters[f"{layer}.bias"])
        if layer == 0 and spec.one_hot:
            own = parameters[TASK_EMBEDDING]  # the one-hot's product with its columns of the first weight
            bias = bias + (own.transpose(0, 1) if weight.dim() == 4 else own)
        x = linear(x, weight, bias)
        if spec.layer_norm:
            # No gain and bias: the next layer can take their part, and they cost more than the norm itself.
            x = F.layer_norm(x, (spec.width,))
        x = activation(x)
    return linear(x, parameters["head.weight"], _rows(parameters["head.bias"]))


def _rows(bias: Tensor) -> Tensor:
    """Lay out a bias, [S, O] or one per task [T, S, O], as [S, 1, O] or [S, T, O]."""
    return bias.unsqueeze(1) if bias.dim() == 2 else bias.transpose(0, 1)


def of_tasks(spec: MLPSpec, parameters: Parameters, tasks: Tensor | None) -> Parameters:
    """Joint parameters for inputs [N, B, I] of the tasks of an index tensor [N] only; None: of all tasks."""
    if tasks is None:
        return parameters
    chosen = dict(parameters)
    if spec.one_hot:
        chosen[TASK_EMBEDDING] = chosen[TASK_EMBEDDING].index_select(1, tasks)
    if spec.per_task_heads:
        chosen |= {name: chosen[name].index_select(0, tasks) for name in ("head.weight", "head.bias")}
    return chosen


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer to x [S, T, B, I]: weight [S, O, I] or [T, S, O, I], bias [S, 1 or T, O]."""
    if weight.dim() == 3:
        return _joint_product(x, weight, bias)
    # A tensor that waits in the weight's `grad` is where its gradient is wanted; only one use may have it,
    # the engine adds up those of the others. A `gram_sum` wants the gradient in blocks, which it uses up.
    destination = None
    if weight.is_leaf:
        destination, weight.grad = weight.grad, None
    blocks = getattr(weight, "gram_sum", None)
    destination = destination if blocks is None else blocks.claim()
    result: Tensor = _PerTaskLinear.apply(x, weight, bias, destination)  # type: ignore[no-untyped-call]
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
    formed right at their destination, views of the Jacobian, or block by block for a sum that uses them up.
    autograd alone would do T small products for each of the three.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, destination: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.destination, ctx.bias_tasks = destination, bias.shape[1]
        if weight.stride(0) == 0:
            return _joint_product(x, weight[0], bias)
        return torch.matmul(x, weight.transpose(0, 1).mT).add_(bias.unsqueeze(2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        stack, tasks, batch, _ = x.shape
        destination = ctx.destination
        if destination is None:
            destination = weight.new_empty(weight.shape)
        if isinstance(destination, Tensor):
            for network in range(stack):
                torch.bmm(grad[network].mT, x[network], out=destination[:, network])
        else:
            for network in range(stack):
                for part in grad[network].split(max(destination.chunk // x.shape[-1], 1), dim=-1):
                    destination.add(torch.bmm(part.mT, x[network]))
            destination = weight.new_zeros(()).expand(weight.shape)
        grad_bias = grad.sum(2) if ctx.bias_tasks > 1 else grad.sum((1, 2)).unsqueeze(1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            if weight.stride(0) == 0:
                grad_x = torch.bmm(grad.reshape(stack, tasks * batch, -1), weight[0]).view(x.shape)
            else:
                grad_x = torch.matmul(grad, weight.transpose(0, 1))
        return grad_x, destination, grad_bias, None


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
