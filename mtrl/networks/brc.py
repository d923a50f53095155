"""BroNet as in BRC: a wide residual network with layer normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.base import Parameters
from mtrl.networks.gaussian import bounded_log_std
from mtrl.networks.identity import Kind, Rows, TaskIdentity
from mtrl.networks.initial import FromLayout, Layout, at_least, dense_layer, norm_layer, orthogonal
from mtrl.networks.layers import Weights


@dataclass(kw_only=True, eq=False)
class BRC(FromLayout):
    """BroNet of BRC: an input layer and residual blocks, all with layer normalisation.

    h = relu(LN(W x)), then blocks h + LN(W relu(LN(W h))), then a linear layer; all weights orthogonal with
    gain sqrt 2, biases 0. An actor has two linear layers at its end, one for the means and one, of gain 1,
    for the log deviations (`bounded_log_std`).

    Source: Nauman et al., "Bigger, Regularized, Optimistic" (arXiv 2405.16158) and "Bigger, Regularized,
    Categorical" (arXiv 2505.23150), with the authors' code (jaxrl/networks.py). That code appends to the
    inputs a learnt vector per task of length 1: `network.task_identity embedding`. Deviations: actor and
    critic each learn a table of their own, while the authors' actor reads the critic's; critics' logits are
    relative to those of a Laplace distribution (`CriticOutputs`).

    Args:
        stack: S.
        num_tasks: T.
        inputs: I, without the task identity.
        outputs: units of the last layer.
        task_identity: see `TaskIdentity`.
        role: "actor" or "critic".
        width: units per layer.
        depth: of which depth - 1 are residual blocks of two layers.
        identity_width: columns of a learnt or projected task identity.
        identity_rows: the given numbers of task_identity "file".
    """

    stack: int
    num_tasks: int
    inputs: int
    outputs: int
    task_identity: Kind = "embedding"
    role: str = "critic"
    width: int = 400
    depth: int = 3
    identity_width: int = 32
    identity_rows: Rows | None = None

    given = ("width", "depth")
    identities = ("one_hot", "embedding", "file", "none")

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth)
        self.identity = TaskIdentity(
            self.task_identity, self.num_tasks, self.identity_width, self.identity_rows
        )

    def layout(self) -> Layout:
        """Return parameters [S, ...]; those of the task identity are [1, ...]."""
        stack, width, draw = self.stack, self.width, orthogonal(2**0.5)
        shared, own_rows = self.identity.layout()
        before = self.inputs + self.identity.columns
        for name in ("in", *self._blocks()):
            shared |= dense_layer(name, stack, before, width, draw) | norm_layer(name, stack, width)
            before = width
        if self.role == "actor":
            half = self.outputs // 2
            shared |= dense_layer("mean", stack, width, half, draw)
            shared |= dense_layer("log_std", stack, width, half, orthogonal(1.0))
        else:
            shared |= dense_layer("head", stack, width, self.outputs, draw)
        return Layout(shared, {}, own_rows)

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["in.weight"].dim() == 3)
        x = self.identity.append(weights, inputs).expand(self.stack, -1, -1, -1)
        x = torch.relu(weights.layer_norm("in", weights.dense("in", x)))
        blocks = self._blocks()
        for first, second in zip(blocks[::2], blocks[1::2], strict=True):
            inner = torch.relu(weights.layer_norm(first, weights.dense(first, x)))
            x = x + weights.layer_norm(second, weights.dense(second, inner))
        if self.role == "actor":
            return bounded_log_std(weights.dense("mean", x), weights.dense("log_std", x))
        return weights.dense("head", x)

    def _blocks(self) -> list[str]:
        return [f"{block}.{layer}" for block in range(self.depth - 1) for layer in ("first", "second")]
