"""BroNet as in BRC: a wide residual network with layer normalisation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.families import Residual
from mtrl.networks.initial import Fresh, dense_layer, norm_layer, orthogonal
from mtrl.networks.layers import Weights


@dataclass(kw_only=True, eq=False)
class BRC(Residual):
    """BroNet of BRC: an input layer and residual blocks, all with layer normalisation.

    h = relu(LN(W x)), then blocks h + LN(W relu(LN(W h))), then a linear layer; all weights orthogonal with
    gain sqrt 2, biases 0. An actor has two linear layers at its end, one for the means and one, of gain 1,
    for the log deviations (`bounded_log_std`).

    Source: Nauman et al., "Bigger, Regularized, Optimistic" (NeurIPS 2024, arXiv 2405.16158) and "Bigger,
    Regularized, Categorical" (NeurIPS 2025, arXiv 2505.23150), with the authors' code (jaxrl/networks.py).
    That code appends to the inputs a learnt vector per task of length 1: `network.task_identity embedding`.
    Deviations: actor and critic each learn a table of their own, while the authors' actor reads the critic's;
    critics' logits are relative to those of a Laplace distribution (`CriticOutputs`).

    Args:
        width: units per layer.
        depth: 1 (the input layer) plus the number of residual blocks, which have two layers each.
    """

    papers = ("nauman2024bro", "nauman2025brc")
    given = ("width", "depth")

    def _layers(self, outputs: int) -> dict[str, Fresh]:
        stack, width, before, draw = self.stack, self.width, self.columns, orthogonal(2**0.5)
        layers: dict[str, Fresh] = {}
        for name in ("in", *self._blocks()):
            layers |= dense_layer(name, stack, before, width, draw) | norm_layer(name, stack, width)
            before = width
        for name in self.ends:
            own = orthogonal(1.0) if name == "log_std" else draw
            layers |= dense_layer(name, stack, width, outputs, own)
        return layers

    def _body(self, weights: Weights, x: Tensor) -> Tensor:
        x = weights.dense("in", x.expand(self.stack, -1, -1, -1))
        x = torch.relu(weights.layer_norm("in", x))
        blocks = self._blocks()
        for first, second in zip(blocks[::2], blocks[1::2], strict=True):
            inner = torch.relu(weights.layer_norm(first, weights.dense(first, x)))
            x = x + weights.layer_norm(second, weights.dense(second, inner))
        return x

    def _blocks(self) -> list[str]:
        return [f"{block}.{layer}" for block in range(self.depth - 1) for layer in ("first", "second")]
