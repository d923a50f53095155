"""SimbaV2: features and weights on the unit sphere."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mtrl.networks.base import Parameters
from mtrl.networks.families import Residual
from mtrl.networks.identity import PROJECTION
from mtrl.networks.initial import Fresh, Shape, constant, orthogonal
from mtrl.networks.layers import Weights

_EXPANSION = 4
_SHIFT = 3.0  # the constant that is appended to the inputs, so that normalising keeps their length
_SMALLEST = 1e-8


@dataclass(kw_only=True, eq=False)
class SimbaV2(Residual):
    """SimbaV2: features of length 1 between the layers, and weights of length 1 after each step.

    With n(x) = x / |x| and learnt vectors s and a, h = n(s * W n([x, 3])), then blocks h <- n(h + a * (n(W2
    (relu(s * W1 h) + 1e-8)) - h)) with 4 times as many units inside, then W2 (s * W1 h) + b. No other layer
    has a bias. An actor has two such ends, for means and log deviations (`bounded_log_std`). After each step
    `project` sets the weights of every output unit to length 1.

    Source: Lee et al., "Hyperspherical Normalization for Scalable Deep Reinforcement Learning" (ICML 2025,
    arXiv 2502.15280), section 4, with the authors' code (scale_rl simbaV2_layer.py): weights orthogonal, then
    of unit length; s starts at sqrt(2 / width), inside a block at half of that, at the end at 1; a starts at
    1 / (blocks + 1), stored in units of that times sqrt(width). Made for one task; here the task identity is
    appended to the inputs, observations are standardised by the statistics of the warm-up, and critics'
    logits are relative to those of a Laplace distribution (`CriticOutputs`).

    Args:
        width: units between the blocks; 128 for the actor and 512 for the critic in the paper.
        depth: 1 (the input layer) plus the number of blocks; in the paper 1 for the actor, 2 for the critic.
    """

    papers = ("lee2025simbav2",)
    given = ("width", "depth")
    _critic_end = "value"

    def _layers(self, outputs: int) -> dict[str, Fresh]:
        width, inner, scale = self.width, _EXPANSION * self.width, math.sqrt(2.0 / self.width)
        layers: dict[str, Fresh] = {}

        def layer(name: str, before: int, after: int, vector: str, start: float, length: int) -> None:
            layers[f"{name}.weight"] = Fresh((self.stack, after, before), _unit_rows)
            layers[f"{name}.{vector}"] = Fresh((self.stack, length), constant(start))

        layer("in", self.columns + 1, width, "scale", scale, width)
        for block in range(self.depth - 1):
            layer(f"{block}.first", width, inner, "scale", scale / math.sqrt(_EXPANSION), inner)
            layer(f"{block}.second", inner, width, "alpha", 1.0 / math.sqrt(width), width)
        for end in self.ends:
            layer(f"{end}.first", width, width, "scale", 1.0, width)
            layer(f"{end}.second", width, outputs, "bias", 0.0, outputs)
        return layers

    def _body(self, weights: Weights, x: Tensor) -> Tensor:
        x = F.normalize(F.pad(x, (0, 1), value=_SHIFT), dim=-1)
        x = F.normalize(self._scaled(weights, "in", x.expand(self.stack, -1, -1, -1)), dim=-1)
        step = math.sqrt(self.width) / self.depth  # depth is the number of blocks + 1
        for block in range(self.depth - 1):
            inner = torch.relu(self._scaled(weights, f"{block}.first", x)) + _SMALLEST
            target = F.normalize(weights.dense(f"{block}.second", inner), dim=-1)
            x = F.normalize(torch.lerp(x, target, step * weights.vector(f"{block}.second.alpha")), dim=-1)
        return x

    def _end(self, weights: Weights, name: str, x: Tensor) -> Tensor:
        return weights.dense(f"{name}.second", self._scaled(weights, f"{name}.first", x))

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
