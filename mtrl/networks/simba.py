"""SimBa: residual blocks of pre-normalised perceptrons."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.base import Parameters
from mtrl.networks.gaussian import bounded_log_std
from mtrl.networks.identity import Kind, Rows, TaskIdentity
from mtrl.networks.initial import (
    FromLayout,
    Layout,
    at_least,
    dense_layer,
    he_normal,
    norm_layer,
    orthogonal,
)
from mtrl.networks.layers import Weights

_EXPANSION = 4


@dataclass(kw_only=True, eq=False)
class SimBa(FromLayout):
    """SimBa: a linear input layer, residual blocks with layer normalisation in front, a last normalisation.

    h = W x, then blocks h + W2 relu(W1 LN(h)) with 4 times as many units inside, then LN and a linear layer.
    An actor has two of these, for means and log deviations (`bounded_log_std`).

    Source: Lee et al., "SimBa" (ICLR 2025, arXiv 2410.09754), section 4, with the authors' code (scale_rl
    simba_layer.py): first and last layers orthogonal with gain 1, the blocks He-normal (cut off at two
    deviations), biases 0. Made for one task; here the task identity is appended to the inputs, and
    observations are standardised by the statistics of the warm-up (`network.observation_norm`), not by
    running ones.

    Args:
        stack: S.
        num_tasks: T.
        inputs: I, without the task identity.
        outputs: units of the last layer.
        task_identity: see `TaskIdentity`.
        role: "actor" or "critic".
        width: units between the blocks; 128 for the actor and 512 for the critic in the paper.
        depth: of which depth - 1 are blocks; the paper has one block for the actor and two for the critic.
        identity_width: columns of a learnt or projected task identity.
        identity_rows: the given numbers of task_identity "file".
    """

    stack: int
    num_tasks: int
    inputs: int
    outputs: int
    task_identity: Kind = "one_hot"
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
        stack, width, inner = self.stack, self.width, _EXPANSION * self.width
        shared, own_rows = self.identity.layout()
        shared |= dense_layer("in", stack, self.inputs + self.identity.columns, width, orthogonal(1.0))
        for block in range(self.depth - 1):
            shared |= norm_layer(f"{block}.norm", stack, width)
            shared |= dense_layer(f"{block}.first", stack, width, inner, he_normal(width))
            shared |= dense_layer(f"{block}.second", stack, inner, width, he_normal(inner))
        shared |= norm_layer("norm", stack, width)
        halves = ("mean", "log_std") if self.role == "actor" else ("head",)
        for name in halves:
            shared |= dense_layer(name, stack, width, self.outputs // len(halves), orthogonal(1.0))
        return Layout(shared, {}, own_rows)

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["in.weight"].dim() == 3)
        x = weights.dense("in", self.identity.append(weights, inputs).expand(self.stack, -1, -1, -1))
        for block in range(self.depth - 1):
            inner = weights.dense(f"{block}.first", weights.layer_norm(f"{block}.norm", x))
            x = x + weights.dense(f"{block}.second", torch.relu(inner))
        x = weights.layer_norm("norm", x)
        if self.role == "actor":
            return bounded_log_std(weights.dense("mean", x), weights.dense("log_std", x))
        return weights.dense("head", x)
