"""The multi-layer perceptron, plain or in residual blocks, with task heads or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl.networks.base import Parameters
from mtrl.networks.identity import Kind, Rows, TaskIdentity
from mtrl.networks.initial import (
    Draw,
    Fresh,
    FromLayout,
    Layout,
    at_least,
    dense_layer,
    he_uniform,
    norm_layer,
    orthogonal,
    uniform,
)
from mtrl.networks.layers import Weights, dense, perceptron

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
}
_EPS = 1e-5  # of LayerNorm, torch's default
TASK_EMBEDDING = "0.task"  # joint [S, T, H], per task [T, S, H]: the first weight's columns of the one-hot


class MLP(FromLayout):
    """A multi-layer perceptron; S of them are stacked.

    Args:
        stack: S.
        num_tasks: T.
        inputs: I, without the task identity.
        outputs: units of the last layer.
        task_identity: what the first layer sees of the task, see `TaskIdentity`.
        width: units per hidden layer.
        depth: hidden layers.
        activation: a name in ACTIVATIONS.
        layer_norm: normalise each hidden layer before its non-linearity, without gain and bias.
        per_task_heads: a last layer per task on a shared torso.
        head_range: the last layer's weights start uniformly in +-head_range.
        residual: depth - 1 residual blocks of two layers follow the input layer; each layer is normalised
            with gain and bias (BroNet; Nauman et al., NeurIPS 2024, arXiv 2405.16158).
        initialisation: of the weights; biases start at 0. "he_uniform": hidden layers He-uniform, the last
            layer uniform in +-head_range, as in the public Meta-World+ code. "orthogonal": hidden layers with
            gain sqrt 2 (the columns of the one-hot identity among themselves), the last layer with head_gain.
        head_gain: of an orthogonal last layer; 0.01 for actors and 1 for critics, as PPO in CleanRL and
            Stable-Baselines3.
        identity_width: columns of a learnt or projected task identity.
        identity_rows: the given numbers of task_identity "file".

    Raises:
        ValueError: no layer or unit, or an unknown activation.
    """

    papers = ("nauman2024bro",)
    credit = "A perceptron has no paper; its residual blocks (network.critic_block residual) are BroNet's."
    # Fields of the configuration's `network` that `network_arguments` passes to this class.
    given = (
        *("width", "depth", "activation", "layer_norm", "per_task_heads", "head_range", "residual"),
        *("initialisation", "head_gain"),
    )
    identities = ("one_hot", "embedding", "file", "none")

    def __init__(
        self,
        *,
        stack: int,
        num_tasks: int,
        inputs: int,
        outputs: int,
        task_identity: Kind = "one_hot",
        width: int = 400,
        depth: int = 3,
        activation: str = "relu",
        layer_norm: bool = False,
        per_task_heads: bool = False,
        head_range: float = 1e-3,
        residual: bool = False,
        initialisation: Literal["he_uniform", "orthogonal"] = "he_uniform",
        head_gain: float = 1e-2,
        identity_width: int = 32,
        identity_rows: Rows | None = None,
    ) -> None:
        self.stack, self.num_tasks, self.inputs, self.outputs = stack, num_tasks, inputs, outputs
        self.one_hot = task_identity == "one_hot"  # a lookup, which is cheaper than columns
        self.identity = TaskIdentity(
            "none" if self.one_hot else task_identity, num_tasks, identity_width, identity_rows
        )
        at_least(1, width=width, depth=depth)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; found {activation!r}.")
        self.width, self.depth, self.layer_norm = width, depth, layer_norm
        self.activation = ACTIVATIONS[activation]
        self.per_task_heads, self.head_range = per_task_heads, head_range
        self.residual = residual
        self.layers = 2 * depth - 1 if residual else depth
        self.is_orthogonal, self.head_gain = initialisation == "orthogonal", head_gain

    def layout(self) -> Layout:
        """Return shared parameters `[S, ...]` and task heads `[T, S, ...]` (none with a shared head)."""
        stack, tasks, width = self.stack, self.num_tasks, self.width
        shared, own_rows = self.identity.layout()
        inputs = self.inputs + self.identity.columns
        fan_in = inputs + (tasks if self.one_hot else 0)
        for layer in range(self.layers):
            draw = self._draw(he_uniform(fan_in), 2**0.5)
            shared |= dense_layer(str(layer), stack, inputs, width, draw)
            if layer == 0 and self.one_hot:
                shared[TASK_EMBEDDING] = Fresh((stack, tasks, width), draw)
                own_rows |= {TASK_EMBEDDING}
            if self.residual:
                shared |= norm_layer(str(layer), stack, width)
            fan_in = inputs = width
        lead = (tasks, stack) if self.per_task_heads else (stack,)
        draw = self._draw(uniform(self.head_range), self.head_gain)
        head = dense_layer("head", lead, width, self.outputs, draw)
        if self.per_task_heads:
            return Layout(shared, head, own_rows)
        return Layout(shared | head, {}, own_rows)

    def _draw(self, usual: Draw, gain: float) -> Draw:
        return orthogonal(gain) if self.is_orthogonal else usual

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        joint = parameters["0.weight"].dim() == 3
        if self.identity.columns:
            inputs = self.identity.append(Weights(parameters, tasks, joint), inputs)
        if joint and tasks is not None:
            parameters = self._rows_of(parameters, tasks)
        x, identity = inputs.expand(self.stack, *inputs.shape), None
        if self.one_hot:  # an embedding is cheaper than a product with one-hot columns
            own = parameters[TASK_EMBEDDING]
            identity = own if joint else own.transpose(0, 1)
        if self.residual:
            return self._blocks(Weights(parameters, None, joint), x, identity)
        names, normalised = [*map(str, range(self.layers)), "head"], self.layer_norm
        return perceptron(parameters, names, x, self.activation, normalised=normalised, identity=identity)

    def _blocks(self, weights: Weights, x: Tensor, identity: Tensor | None) -> Tensor:
        """Apply the input layer, the residual blocks and the head."""

        def normalised(layer: int, x: Tensor, identity: Tensor | None = None) -> Tensor:
            name = str(layer)
            return weights.layer_norm(name, dense(weights.parameters, name, x, identity), eps=_EPS)

        x = self.activation(normalised(0, x, identity))
        for layer in range(1, self.layers, 2):
            x = x + normalised(layer + 1, self.activation(normalised(layer, x)))
        return weights.dense("head", x)

    def _rows_of(self, parameters: Parameters, tasks: Tensor) -> Parameters:
        """Return joint parameters with the embeddings and heads of the tasks of an index [N] only."""
        chosen = dict(parameters)
        if self.one_hot:
            chosen[TASK_EMBEDDING] = chosen[TASK_EMBEDDING].index_select(1, tasks)
        if self.per_task_heads:
            chosen |= {name: chosen[name].index_select(0, tasks) for name in ("head.weight", "head.bias")}
        return chosen
