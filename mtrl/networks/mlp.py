"""The multi-layer perceptron, plain or in residual blocks, with task heads or without."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl.networks.base import Parameters
from mtrl.networks.families import Sized
from mtrl.networks.identity import Rows, TaskIdentity
from mtrl.networks.initial import (
    Draw,
    Fresh,
    Layout,
    at_least,
    dense_layer,
    he_uniform,
    norm_layer,
    orthogonal,
    uniform,
)
from mtrl.networks.layers import Weights

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
}
_EPS = 1e-5  # of LayerNorm, torch's default
TASK_EMBEDDING = "0.task"  # joint [S, T, H], per task [T, S, H]: the first weight's columns of the one-hot


@dataclass(kw_only=True, eq=False)
class MLP(Sized):
    """A multi-layer perceptron; S of them are stacked.

    Args:
        width: units per hidden layer.
        depth: hidden layers.
        activation: a name in ACTIVATIONS.
        layer_norm: normalise each hidden layer before its non-linearity, without gain and bias.
        per_task_heads: a last layer per task on a shared torso.
        head_range: the last layer's weights start uniformly in +-head_range.
        residual: depth - 1 residual blocks of two layers follow the input layer; each layer is normalised
            with gain and bias (BroNet; Nauman et al., NeurIPS 2024, arXiv 2405.16158).
        initialisation: of the weights; biases start at 0. "he_uniform": hidden layers He-uniform, the last
            layer uniform in +-head_range, as in the public Meta-World+ code (there its biases too).
            "orthogonal": hidden layers with gain sqrt 2 (the columns of the one-hot identity among
            themselves), the last layer with head_gain.
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

    depth: int = 3
    activation: str = "relu"
    layer_norm: bool = False
    per_task_heads: bool = False
    head_range: float = 1e-3
    residual: bool = False
    initialisation: Literal["he_uniform", "orthogonal"] = "he_uniform"
    head_gain: float = 1e-2
    identity_width: int = 32
    identity_rows: Rows | None = None

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth)
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; found {self.activation!r}."
            )
        self.one_hot = self.task_identity == "one_hot"  # a lookup, which is cheaper than columns
        kind = "none" if self.one_hot else self.task_identity
        self.identity = TaskIdentity(kind, self.num_tasks, self.identity_width, self.identity_rows)
        self.layers = 2 * self.depth - 1 if self.residual else self.depth

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
        return orthogonal(gain) if self.initialisation == "orthogonal" else usual

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["0.weight"].dim() == 3)
        x = self.identity.append(weights, inputs).expand(self.stack, -1, -1, -1)
        identity = weights.table(TASK_EMBEDDING) if self.one_hot else None
        x = (self._blocks if self.residual else self._plain)(weights, x, identity)
        return weights.head("head", x) if self.per_task_heads else weights.dense("head", x)

    def _plain(self, weights: Weights, x: Tensor, identity: Tensor | None) -> Tensor:
        """Apply the hidden layers."""
        activation = ACTIVATIONS[self.activation]
        for layer in range(self.layers):
            x, identity = weights.dense(str(layer), x, identity), None
            # Without gain and bias: the next layer can learn them, and they cost more than the norm.
            x = activation(F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)
        return x

    def _blocks(self, weights: Weights, x: Tensor, identity: Tensor | None) -> Tensor:
        """Apply the input layer and the residual blocks."""
        activation = ACTIVATIONS[self.activation]

        def normalised(layer: int, x: Tensor, identity: Tensor | None = None) -> Tensor:
            return weights.layer_norm(str(layer), weights.dense(str(layer), x, identity), eps=_EPS)

        x = activation(normalised(0, x, identity))
        for layer in range(1, self.layers, 2):
            x = x + normalised(layer + 1, activation(normalised(layer, x)))
        return x
