"""FiLM: the task scales and shifts the layers of an encoder."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.families import Encoded
from mtrl.networks.layers import Weights


@dataclass(kw_only=True, eq=False)
class FiLM(Encoded):
    """FiLM in the form of metaworld-algorithms: the task scales and shifts the layers of an encoder.

    A perceptron of relu(v_t), a learnt vector of the task, puts out a factor gamma_l and a shift beta_l for
    each layer of an encoder: h <- gamma_l relu(W h) + beta_l, the last layer without ReLU. A torso maps [h,
    relu(v_t)] to the outputs.

    Source: Perez et al., "FiLM" (AAAI 2018, arXiv 1709.07871), as a baseline of CARE (arXiv 2102.06177) and
    in metaworld-algorithms (nn/film.py). Both have one number per layer where the FiLM paper has one per
    channel, before the ReLU and with gamma around 1. `per_channel` is ours: one per channel, after it. In the
    authors' code of CARE the actor's encoder stays at its random start; here every parameter follows the
    losses of its own network.

    Args:
        per_channel: a factor and a shift for each unit, not one for the layer (ours).
    """

    per_channel: bool = False

    papers = ("perez2018film",)
    given = ("width", "depth", "head_range")

    def _perceptrons(self) -> Iterable[tuple[str, int, list[int]]]:
        yield "film", self.stack, [self.embedding, *self.hidden, 2 * sum(self._channels())]
        yield "encoder", self.stack, [self.inputs, *self.hidden, self.embedding]

    def _encode(self, weights: Weights, vector: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        numbers = weights.layers("film", self.encoder_depth + 1, vector)
        x = inputs.expand(self.stack, -1, -1, -1)
        pairs = numbers.split([2 * channels for channels in self._channels()], dim=-1)
        for layer, pair in enumerate(pairs):
            gamma, beta = pair.chunk(2, dim=-1)
            x = weights.dense(f"encoder.{layer}", x)
            x = torch.relu(x) if layer < self.encoder_depth else x
            x = torch.addcmul(beta, x, gamma)
        return x, vector

    def _channels(self) -> list[int]:
        """Return how many factors each layer of the encoder has, and as many shifts."""
        return [*self.hidden, self.embedding] if self.per_channel else [1] * (self.encoder_depth + 1)
