"""SimBa: residual blocks of pre-normalised perceptrons."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.families import Residual
from mtrl.networks.initial import Fresh, dense_layer, he_normal, norm_layer, orthogonal
from mtrl.networks.layers import Weights

_EXPANSION = 4


@dataclass(kw_only=True, eq=False)
class SimBa(Residual):
    """SimBa: a linear input layer, residual blocks with layer normalisation in front, a last normalisation.

    h = W x, then blocks h + W2 relu(W1 LN(h)) with 4 times as many units inside, then LN and a linear layer.
    An actor has two linear layers there, for means and log deviations (`bounded_log_std`).

    Source: Lee et al., "SimBa" (ICLR 2025, arXiv 2410.09754), section 4, with the authors' code (scale_rl
    simba_layer.py): first and last layers orthogonal with gain 1, the blocks He-normal (cut off at two
    deviations), biases 0. Made for one task; here the task identity is appended to the inputs, and
    observations are standardised by the statistics of the warm-up (`network.observation_norm`), not by
    running ones.

    Args:
        width: units between the blocks; 128 for the actor and 512 for the critic in the paper.
        depth: 1 (the input layer) plus the number of blocks; in the paper 1 for the actor, 2 for the critic.
    """

    papers = ("lee2025simba",)
    given = ("width", "depth")

    def _layers(self, outputs: int) -> dict[str, Fresh]:
        stack, width, inner = self.stack, self.width, _EXPANSION * self.width
        layers = dense_layer("in", stack, self.columns, width, orthogonal(1.0))
        for block in range(self.depth - 1):
            layers |= norm_layer(f"{block}.norm", stack, width)
            layers |= dense_layer(f"{block}.first", stack, width, inner, he_normal(width))
            layers |= dense_layer(f"{block}.second", stack, inner, width, he_normal(inner))
        layers |= norm_layer("norm", stack, width)
        for name in self.ends:
            layers |= dense_layer(name, stack, width, outputs, orthogonal(1.0))
        return layers

    def _body(self, weights: Weights, x: Tensor) -> Tensor:
        x = weights.dense("in", x.expand(self.stack, -1, -1, -1))
        for block in range(self.depth - 1):
            inner = weights.dense(f"{block}.first", weights.layer_norm(f"{block}.norm", x))
            x = x + weights.dense(f"{block}.second", torch.relu(inner))
        return weights.layer_norm("norm", x)
