"""SimbaV2: features and weights on the unit sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl.networks.base import Parameters
from mtrl.networks.gaussian import bounded_log_std
from mtrl.networks.identity import PROJECTION, Kind, Rows, TaskIdentity
from mtrl.networks.initial import Fresh, FromLayout, Layout, Shape, at_least, constant, orthogonal
from mtrl.networks.layers import Weights

_EXPANSION = 4
_SHIFT = 3.0  # the constant that is appended to the inputs, so that normalising keeps their length
_SMALLEST = 1e-8


@dataclass(kw_only=True, eq=False)
class SimbaV2(FromLayout):
    """SimbaV2: features of length 1 between the layers, and weights of length 1 after each step.

    With n(x) = x / |x| and learnt vectors s and a, h = n(s * W n([x, 3])), then blocks h <- n(h + a * (n(W2
    (relu(s * W1 h) + 1e-8)) - h)) with 4 times as many units inside, then W2 (s * W1 h) + b. No other layer
    has a bias. An actor has two such ends, for means and log deviations (`bounded_log_std`). After each step
    `project` sets the weights of every output unit to length 1.

    Source: Lee et al., "Hyperspherical Normalization for Scalable Deep Reinforcement Learning" (arXiv
    2502.15280), section 4, with the authors' code (scale_rl simbaV2_layer.py): weights orthogonal, then of
    unit length; s starts at sqrt(2 / width), inside a block at half of that, at the end at 1; a starts at 1 /
    (blocks + 1), stored in units of that times sqrt(width). Made for one task; here the task identity is
    appended to the inputs, and observations are standardised by the statistics of the warm-up.

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
        self.ends = ("mean", "log_std") if self.role == "actor" else ("value",)

    def layout(self) -> Layout:
        """Return parameters [S, ...]; those of the task identity are [1, ...]."""
        shared, own_rows = self.identity.layout()
        width, inner, scale = self.width, _EXPANSION * self.width, math.sqrt(2.0 / self.width)

        def layer(name: str, before: int, after: int, vector: str, start: float, length: int) -> None:
            shared[f"{name}.weight"] = Fresh((self.stack, after, before), _unit_rows)
            shared[f"{name}.{vector}"] = Fresh((self.stack, length), constant(start))

        layer("in", self.inputs + self.identity.columns + 1, width, "scale", scale, width)
        for block in range(self.depth - 1):
            layer(f"{block}.first", width, inner, "scale", scale / math.sqrt(_EXPANSION), inner)
            layer(f"{block}.second", inner, width, "alpha", 1.0 / math.sqrt(width), width)
        for end in self.ends:
            outputs = self.outputs // len(self.ends)
            layer(f"{end}.first", width, width, "scale", 1.0, width)
            layer(f"{end}.second", width, outputs, "bias", 0.0, outputs)
        return Layout(shared, {}, own_rows)

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["in.weight"].dim() == 3)
        x = F.normalize(F.pad(self.identity.append(weights, inputs), (0, 1), value=_SHIFT), dim=-1)
        x = F.normalize(self._scaled(weights, "in", x.expand(self.stack, -1, -1, -1)), dim=-1)
        step = math.sqrt(self.width) / self.depth  # depth is the number of blocks + 1
        for block in range(self.depth - 1):
            inner = torch.relu(self._scaled(weights, f"{block}.first", x)) + _SMALLEST
            target = F.normalize(weights.dense(f"{block}.second", inner), dim=-1)
            x = F.normalize(torch.lerp(x, target, step * weights.vector(f"{block}.second.alpha")), dim=-1)
        ends = [weights.dense(f"{end}.second", self._scaled(weights, f"{end}.first", x)) for end in self.ends]
        return bounded_log_std(ends[0], ends[1]) if self.role == "actor" else ends[0]

    def project(self, parameters: Parameters) -> None:
        """Set the weights of every output unit to length 1, in place (`Projects`)."""
        for name, weight in parameters.items():
            if name.endswith(".weight") and name != f"{PROJECTION}.weight":
                weight.div_(torch.linalg.vector_norm(weight, dim=-1, keepdim=True).clamp(min=_SMALLEST))

    @staticmethod
    def _scaled(weights: Weights, name: str, x: Tensor) -> Tensor:
        return weights.vector(f"{name}.scale") * weights.dense(name, x)


def _unit_rows(shape: Shape, generator: torch.Generator) -> Tensor:
    return F.normalize(orthogonal(1.0)(shape, generator), dim=-1)
