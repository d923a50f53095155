"""CARE: a mixture of encoders, weighed by attention on the task's context."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrl.networks.families import Encoded
from mtrl.networks.initial import at_least
from mtrl.networks.layers import Weights


@dataclass(kw_only=True, eq=False)
class CARE(Encoded):
    """CARE in the form of metaworld-algorithms: encoders mixed by attention on a context of the task.

    The context c is a perceptron of relu(a learnt vector of the task). A second perceptron of c gives logits,
    and the attention is softmax(logits / temperature). It mixes the outputs of encoders, perceptrons of the
    inputs without the task identity, and a torso maps [mixture, c] to the outputs.

    Source: Sodhani et al., "Multi-Task Reinforcement Learning with Context-based Representations" (ICML 2021,
    arXiv 2102.06177), as metaworld-algorithms has it (nn/care.py). Differences from the authors' code:
    encoders have three layers, not two, and a critic's see the action; the vectors of tasks are learnt, not
    those of a language model; actor and critics share nothing, and every parameter follows the losses of its
    own network. In the authors' code the actor's attention stays at its random start, because its optimiser
    does not hold it.

    Args:
        experts: encoders; 6 on MT10 and 10 on MT50 in metaworld-algorithms.
        encoder_width: units per hidden layer of encoders, context and attention.
        embedding: length of vectors, contexts and encoders' outputs.
        temperature: of the attention; the higher, the more even.
    """

    experts: int = 6
    temperature: float = 1.0

    papers = ("sodhani2021care",)
    given = ("width", "depth", "head_range")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, experts=self.experts)
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive; found {self.temperature}.")

    def _perceptrons(self) -> Iterable[tuple[str, int, list[int]]]:
        yield "context", self.stack, [self.embedding, *self.hidden, self.embedding]
        yield "attention", self.stack, [self.embedding, *self.hidden, self.experts]
        yield "encoders", self.stack * self.experts, [self.inputs, *self.hidden, self.embedding]

    def _encode(self, weights: Weights, vector: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        layers = self.encoder_depth + 1
        context = weights.layers("context", layers, vector)
        logits = weights.layers("attention", layers, context)
        attention = torch.softmax(logits / self.temperature, dim=-1)  # [S, T, 1, K]
        x = inputs.expand(self.stack * self.experts, -1, -1, -1)
        encoded = weights.layers("encoders", layers, x).unflatten(0, (self.stack, self.experts))
        return torch.einsum("stk,sktbe->stbe", attention.squeeze(2), encoded), context
