"""FiLM: the task scales and shifts the layers of an encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.base import Parameters
from mtrl.networks.initial import (
    Fresh,
    FromLayout,
    Layout,
    at_least,
    dense_layers,
    he_uniform,
    normal,
    uniform,
)
from mtrl.networks.layers import Weights


@dataclass(kw_only=True, eq=False)
class FiLM(FromLayout):
    """FiLM in the form of metaworld-algorithms: the task scales and shifts the layers of an encoder.

    A perceptron of relu(v_t), a learnt vector of the task, puts out a factor gamma_l and a shift beta_l for
    each layer of an encoder: h <- gamma_l relu(W h) + beta_l, the last layer without ReLU. A torso maps [h,
    relu(v_t)] to the outputs.

    Source: Perez et al., "FiLM" (AAAI 2018, arXiv 1709.07871), as a baseline of CARE (arXiv 2102.06177) and
    in metaworld-algorithms (nn/film.py). Both have one number per layer where the FiLM paper has one per
    channel; `per_channel` is that, and is ours. In the authors' code of CARE the actor's encoder stays at its
    random start; here every parameter follows the losses of its own network. Weights are He-uniform, biases
    0, the last layer is uniform in +-head_range, vectors of tasks are normal with variance 1 / embedding.

    Args:
        stack: S.
        num_tasks: T.
        inputs: I.
        outputs: units of the last layer.
        task_identity: "one_hot", which stands for the learnt vectors.
        width: units per hidden layer of the torso.
        depth: hidden layers of the torso.
        head_range: of the last layer's weights at the start.
        encoder_width: units per hidden layer of the encoder and of the task's perceptron.
        encoder_depth: their hidden layers.
        embedding: length of the tasks' vectors and of the encoder's output.
        per_channel: a factor and a shift for each unit, not one for the layer (ours).
    """

    stack: int
    num_tasks: int
    inputs: int
    outputs: int
    task_identity: str = "one_hot"
    width: int = 400
    depth: int = 3
    head_range: float = 1e-3
    encoder_width: int = 50
    encoder_depth: int = 2
    embedding: int = 50
    per_channel: bool = False

    given = ("width", "depth", "head_range")
    identities = ("one_hot",)

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth, embedding=self.embedding)
        at_least(1, encoder_width=self.encoder_width, encoder_depth=self.encoder_depth)
        self._sizes = [*[self.encoder_width] * self.encoder_depth, self.embedding]  # of the encoder's layers

    def layout(self) -> Layout:
        """Return parameters [S, ...] and the tasks' vectors [S, T, embedding]."""
        stack, hidden = self.stack, [self.encoder_width] * self.encoder_depth
        numbers = 2 * sum(self._channels())
        vectors = Fresh((stack, self.num_tasks, self.embedding), normal(1.0 / math.sqrt(self.embedding)))
        shared = {"task.table": vectors}
        shared |= dense_layers("film", stack, [self.embedding, *hidden, numbers], he_uniform)
        shared |= dense_layers("encoder", stack, [self.inputs, *self._sizes], he_uniform)
        torso = [2 * self.embedding, *[self.width] * self.depth, self.outputs]
        shared |= dense_layers("torso", stack, torso, he_uniform, uniform(self.head_range))
        return Layout(shared, {}, frozenset({"task.table"}))

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["torso.0.weight"].dim() == 3)
        vector = torch.relu(weights.table("task.table")).unsqueeze(2)  # [S, T, 1, embedding]
        numbers = weights.layers("film", self.encoder_depth + 1, vector)
        x = inputs.expand(self.stack, -1, -1, -1)
        pairs = numbers.split([2 * channels for channels in self._channels()], dim=-1)
        for layer, pair in enumerate(pairs):
            gamma, beta = pair.chunk(2, dim=-1)
            x = weights.dense(f"encoder.{layer}", x)
            x = torch.relu(x) if layer < self.encoder_depth else x
            x = torch.addcmul(beta, x, gamma)
        beside = vector.expand(-1, -1, x.shape[2], -1)
        return weights.layers("torso", self.depth + 1, torch.cat((x, beside), dim=-1))

    def _channels(self) -> list[int]:
        """Return how many factors each layer has, and as many shifts."""
        return self._sizes if self.per_channel else [1] * len(self._sizes)
