"""The multi-layer perceptron, whose linear layers write weight gradients per task into the Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl.networks.base import InitialParameters, Parameters, PerTaskParameters

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
}
TASK_EMBEDDING = "0.task"  # joint [S, T, H], per task [T, S, H]: the first weight's columns of the one-hot


class MLP:
    """S stacked multi-layer perceptrons, a `Network`.

    Args:
        stack: S.
        num_tasks: T.
        inputs: I, without the task identity.
        outputs: units of the last layer.
        task_identity: "one_hot": the first layer sees the task's one-hot identity; "none": it does not.
        width: units per hidden layer.
        depth: hidden layers.
        activation: a name in ACTIVATIONS.
        layer_norm: normalise each hidden layer before its non-linearity, without gain and bias.
        per_task_heads: a last layer per task on a shared torso.
        head_range: the last layer's weights start uniformly in +-head_range.
        residual: depth - 1 residual blocks of two layers follow the input layer; each layer is normalised
            with gain and bias (BroNet, arXiv 2405.16158).
    """

    # Fields of the configuration's `network` that `network_arguments` passes to this class.
    given = ("width", "depth", "activation", "layer_norm", "per_task_heads", "head_range", "residual")

    def __init__(
        self,
        *,
        stack: int,
        num_tasks: int,
        inputs: int,
        outputs: int,
        task_identity: Literal["one_hot", "none"] = "one_hot",
        width: int = 400,
        depth: int = 3,
        activation: str = "relu",
        layer_norm: bool = False,
        per_task_heads: bool = False,
        head_range: float = 1e-3,
        residual: bool = False,
    ) -> None:
        self.stack, self.num_tasks, self.inputs, self.outputs = stack, num_tasks, inputs, outputs
        self.one_hot = task_identity == "one_hot"
        self.width, self.depth, self.layer_norm = width, depth, layer_norm
        self.activation = ACTIVATIONS[activation]
        self.per_task_heads, self.head_range = per_task_heads, head_range
        self.residual = residual
        self.layers = 2 * depth - 1 if residual else depth

    def initial_parameters(self, generator: torch.Generator) -> InitialParameters:
        """Return shared parameters `[S, ...]` and task heads `[T, S, ...]` (empty with a shared head).

        Hidden layers have He-uniform weights and zero biases. The output layer is uniform in +-head_range
        with zero bias (as in the public Meta-World+ code). The fan-in counts the one-hot task identity.
        """

        def uniform(shape: tuple[int, ...], bound: float) -> Tensor:
            return (torch.rand(shape, generator=generator) * 2 - 1) * bound

        stack, tasks, width = self.stack, self.num_tasks, self.width
        shared: dict[str, Tensor] = {}
        fan_in = self.inputs + (tasks if self.one_hot else 0)
        inputs = self.inputs
        for layer in range(self.layers):
            bound = math.sqrt(6.0 / fan_in)
            shared[f"{layer}.weight"] = uniform((stack, width, inputs), bound)
            shared[f"{layer}.bias"] = torch.zeros(stack, width)
            if layer == 0 and self.one_hot:
                shared[TASK_EMBEDDING] = uniform((stack, tasks, width), bound)
            if self.residual:
                shared[f"{layer}.gain"] = torch.ones(stack, width)
                shared[f"{layer}.shift"] = torch.zeros(stack, width)
            fan_in = inputs = width
        lead = (tasks, stack) if self.per_task_heads else (stack,)
        head = {
            "head.weight": uniform((*lead, self.outputs, width), self.head_range),
            "head.bias": torch.zeros(*lead, self.outputs),
        }
        own_rows = frozenset({TASK_EMBEDDING} & shared.keys())
        if self.per_task_heads:
            return InitialParameters(shared, head, own_rows)
        return InitialParameters(shared | head, {}, own_rows)

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        joint = parameters["0.weight"].dim() == 3
        if joint and tasks is not None:
            parameters = self._rows_of(parameters, tasks)
        x = inputs.expand(self.stack, *inputs.shape)
        before = x
        for layer in range(self.layers):
            identity = None
            if layer == 0 and self.one_hot:  # an embedding is cheaper than a product with one-hot columns
                own = parameters[TASK_EMBEDDING]
                identity = own if joint else own.transpose(0, 1)
            x = _layer(parameters, str(layer), x, identity)
            if self.layer_norm or self.residual:
                # Without gain and bias: the next layer can learn them, and they cost more than the norm.
                x = F.layer_norm(x, (self.width,))
            if not self.residual:
                x = self.activation(x)
                continue
            gain, shift = (_rows(parameters[f"{layer}.{name}"]).unsqueeze(2) for name in ("gain", "shift"))
            x = torch.addcmul(shift, x, gain)
            # Layers 1 and 2 are a block, then 3 and 4; the second adds the block's input to its output.
            x = x + before if layer and layer % 2 == 0 else self.activation(x)
            if layer % 2 == 0:
                before = x
        return _layer(parameters, "head", x)

    def _rows_of(self, parameters: Parameters, tasks: Tensor) -> Parameters:
        """Return joint parameters with the embeddings and heads of the tasks of an index [N] only."""
        chosen = dict(parameters)
        if self.one_hot:
            chosen[TASK_EMBEDDING] = chosen[TASK_EMBEDDING].index_select(1, tasks)
        if self.per_task_heads:
            chosen |= {name: chosen[name].index_select(0, tasks) for name in ("head.weight", "head.bias")}
        return chosen


def _rows(bias: Tensor) -> Tensor:
    """Lay out a bias, [S, O] or one per task [T, S, O], as [S, 1, O] or [S, T, O]."""
    return bias.unsqueeze(1) if bias.dim() == 2 else bias.transpose(0, 1)


def _layer(parameters: Parameters, name: str, x: Tensor, identity: Tensor | None = None) -> Tensor:
    weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
    rows = _rows(bias)
    rows = rows if identity is None else rows + identity
    place = parameters.claim_place(f"{name}.weight") if isinstance(parameters, PerTaskParameters) else None
    return linear(x, weight, rows, place)


def linear(x: Tensor, weight: Tensor, bias: Tensor, place: Tensor | None = None) -> Tensor:
    """Apply a linear layer to x [S, T, B, I]; bias is [S, 1 or T, O].

    The weight is joint, [S, O, I], or per task, [T, S, O, I]; then its gradient is written to `place`, if
    there is one (`PerTaskParameters`).
    """
    if weight.dim() == 3:
        return _joint_product(x, weight, bias)
    result: Tensor = _PerTaskLinear.apply(x, weight, bias, place)  # type: ignore[no-untyped-call]
    return result


def _joint_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    stack, tasks, batch, inputs = x.shape
    product = torch.bmm(x.reshape(stack, tasks * batch, inputs), weight.mT).view(stack, tasks, batch, -1)
    rows = bias.unsqueeze(2)
    return product + rows if torch.is_grad_enabled() else product.add_(rows)  # in place where nothing records


class _PerTaskLinear(torch.autograd.Function):
    """Linear layer whose backward keeps the weight gradients of tasks apart.

    A weight that is the same for all tasks arrives as a stride-0 expansion. Then the outputs and the input
    gradients are one product over all T*B rows each, and only the weight gradients are batched over tasks.
    These are written straight into the Jacobian. Plain autograd would do T small products for all three.
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
