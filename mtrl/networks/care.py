"""CARE: a mixture of encoders, weighed by attention on the task's context."""

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
class CARE(FromLayout):
    """CARE in the form of metaworld-algorithms: encoders mixed by attention on a context of the task.

    The context c is a perceptron of relu(a learnt vector of the task); the attention is the softmax of a
    second perceptron of c, over the temperature. Encoders, perceptrons of the inputs without the task
    identity, are mixed by it, and a torso maps [mixture, c] to the outputs.

    Source: Sodhani et al., "Multi-Task Reinforcement Learning with Context-based Representations" (ICML 2021,
    arXiv 2102.06177), as metaworld-algorithms has it (nn/care.py). Differences from the authors' code:
    encoders have three layers, not two, and a critic's see the action; the vectors of tasks are learnt, not
    those of a language model; actor and critics share nothing, and every parameter follows the losses of its
    own network. In the authors' code the actor's attention stays at its random start, because its optimiser
    does not hold it. Weights are He-uniform, biases 0, the last layer is uniform in +-head_range, vectors of
    tasks are normal with variance 1 / embedding.

    Args:
        stack: S.
        num_tasks: T.
        inputs: I.
        outputs: units of the last layer.
        task_identity: "one_hot", which stands for the learnt vectors.
        width: units per hidden layer of the torso.
        depth: hidden layers of the torso.
        head_range: of the last layer's weights at the start.
        experts: encoders; 6 on MT10 and 10 on MT50 in metaworld-algorithms.
        encoder_width: units per hidden layer of encoders, context and attention.
        encoder_depth: their hidden layers.
        embedding: length of vectors, contexts and encoders' outputs.
        temperature: of the attention; the higher, the more even.
    """

    stack: int
    num_tasks: int
    inputs: int
    outputs: int
    task_identity: str = "one_hot"
    width: int = 400
    depth: int = 3
    head_range: float = 1e-3
    experts: int = 6
    encoder_width: int = 50
    encoder_depth: int = 2
    embedding: int = 50
    temperature: float = 1.0

    given = ("width", "depth", "head_range")
    identities = ("one_hot",)

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth, experts=self.experts, embedding=self.embedding)
        at_least(1, encoder_width=self.encoder_width, encoder_depth=self.encoder_depth)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive; found {self.temperature}.")

    def layout(self) -> Layout:
        """Return parameters [S, ...], encoders [S*K, ...] and the tasks' vectors [S, T, embedding]."""
        stack, hidden = self.stack, [self.encoder_width] * self.encoder_depth
        vectors = Fresh((stack, self.num_tasks, self.embedding), normal(1.0 / math.sqrt(self.embedding)))
        shared = {"task.table": vectors}
        shared |= dense_layers("context", stack, [self.embedding, *hidden, self.embedding], he_uniform)
        shared |= dense_layers("attention", stack, [self.embedding, *hidden, self.experts], he_uniform)
        encoders = stack * self.experts
        shared |= dense_layers("encoders", encoders, [self.inputs, *hidden, self.embedding], he_uniform)
        torso = [2 * self.embedding, *[self.width] * self.depth, self.outputs]
        shared |= dense_layers("torso", stack, torso, he_uniform, uniform(self.head_range))
        return Layout(shared, {}, frozenset({"task.table"}))

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["torso.0.weight"].dim() == 3)
        layers = self.encoder_depth + 1
        vector = torch.relu(weights.table("task.table")).unsqueeze(2)  # one row for each task
        context = weights.layers("context", layers, vector)
        logits = weights.layers("attention", layers, context)
        attention = torch.softmax(logits / self.temperature, dim=-1)  # [S, T, 1, K]
        x = inputs.expand(self.stack * self.experts, -1, -1, -1)
        encoded = weights.layers("encoders", layers, x).unflatten(0, (self.stack, self.experts))
        mixed = torch.einsum("stk,sktbe->stbe", attention.squeeze(2), encoded)
        beside = context.expand(-1, -1, mixed.shape[2], -1)
        return weights.layers("torso", self.depth + 1, torch.cat((mixed, beside), dim=-1))
