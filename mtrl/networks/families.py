"""What networks of the field have in common: their sizes, ends by role, encoders that depend on the task."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mtrl.networks.base import InitialParameters, Parameters
from mtrl.networks.gaussian import bounded_log_std
from mtrl.networks.identity import Kind, Rows, TaskIdentity
from mtrl.networks.initial import (
    Fresh,
    Layout,
    at_least,
    dense_layers,
    he_uniform,
    normal,
    uniform,
)
from mtrl.networks.layers import Weights


@dataclass(kw_only=True, eq=False)
class Sized(ABC):
    """A network whose constructor's arguments are its fields.

    It lists its parameters before memory is taken; an export is checked against the list.

    Args:
        stack: S.
        num_tasks: T.
        inputs: I, without the task identity.
        outputs: units of the last layer, or of each head.
        task_identity: what tells tasks apart. "one_hot" stands for a network's own parameters of each task.
        width: units per hidden layer.
    """

    stack: int
    num_tasks: int
    inputs: int
    outputs: int
    task_identity: Kind = "one_hot"
    width: int = 400

    identities: ClassVar[tuple[str, ...]] = ("one_hot",)

    @abstractmethod
    def layout(self) -> Layout:
        """Return the parameters by name, with their shapes and how they are drawn."""

    def initial_parameters(self, generator: torch.Generator) -> InitialParameters:
        """Draw the parameters of `layout` (`Network.initial_parameters`)."""
        return self.layout().drawn(generator)


@dataclass(kw_only=True, eq=False)
class Residual(Sized):
    """Residual blocks on inputs with the task identity; an actor ends in means and log deviations.

    Args:
        task_identity: see `TaskIdentity`.
        role: "actor" or "critic".
        depth: 1 (the input layer) plus the number of residual blocks.
        identity_width: columns of a learnt or projected task identity.
        identity_rows: the given numbers of task_identity "file".

    Attributes:
        columns: inputs of the first layer.
        ends: names of the last layers. An actor has two of half the outputs, for the means and for what
            `bounded_log_std` bounds.
    """

    role: str = "critic"
    depth: int = 3
    identity_width: int = 32
    identity_rows: Rows | None = None

    identities = ("one_hot", "embedding", "file", "none")
    _critic_end = "head"

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth)
        self.identity = TaskIdentity(
            self.task_identity, self.num_tasks, self.identity_width, self.identity_rows
        )
        self.columns = self.inputs + self.identity.columns
        self.ends = ("mean", "log_std") if self.role == "actor" else (self._critic_end,)

    def layout(self) -> Layout:
        """Return parameters [S, ...]; those of the task identity are [1, ...]."""
        shared, own_rows = self.identity.layout()
        return Layout(shared | self._layers(self.outputs // len(self.ends)), {}, own_rows)

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["in.weight"].dim() == 3)
        x = self._body(weights, self.identity.append(weights, inputs))
        ends = [self._end(weights, name, x) for name in self.ends]
        return bounded_log_std(ends[0], ends[1]) if self.role == "actor" else ends[0]

    @abstractmethod
    def _layers(self, outputs: int) -> dict[str, Fresh]:
        """Return the parameters of body and ends, in the order of draws; each end has `outputs` units."""

    @abstractmethod
    def _body(self, weights: Weights, x: Tensor) -> Tensor:
        """Map [T, B, columns] to [S, T, B, width]."""

    def _end(self, weights: Weights, name: str, x: Tensor) -> Tensor:
        return weights.dense(name, x)


@dataclass(kw_only=True, eq=False)
class Encoded(Sized):
    """An encoder of the inputs that depends on a learnt vector of the task, and a torso after it.

    Weights are He-uniform, biases 0, the last layer is uniform in +-head_range, vectors of tasks are normal
    with variance 1 / embedding.

    Args:
        width: units per hidden layer of the torso.
        depth: hidden layers of the torso.
        head_range: of the last layer's weights at the start.
        encoder_width: units per hidden layer of the encoder and of the perceptrons of the task's vector.
        encoder_depth: their hidden layers.
        embedding: length of the tasks' vectors and of the encoder's output.
    """

    depth: int = 3
    head_range: float = 1e-3
    encoder_width: int = 50
    encoder_depth: int = 2
    embedding: int = 50

    def __post_init__(self) -> None:
        at_least(1, width=self.width, depth=self.depth, embedding=self.embedding)
        at_least(1, encoder_width=self.encoder_width, encoder_depth=self.encoder_depth)
        self.hidden = [self.encoder_width] * self.encoder_depth

    def layout(self) -> Layout:
        """Return parameters [S, ...], those of K encoders [S*K, ...], and vectors [S, T, embedding]."""
        vectors = Fresh((self.stack, self.num_tasks, self.embedding), normal(1.0 / math.sqrt(self.embedding)))
        shared = {"task.table": vectors}
        for name, stack, sizes in self._perceptrons():
            shared |= dense_layers(name, stack, sizes, he_uniform)
        torso = [2 * self.embedding, *[self.width] * self.depth, self.outputs]
        shared |= dense_layers("torso", self.stack, torso, he_uniform, uniform(self.head_range))
        return Layout(shared, {}, frozenset({"task.table"}))

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        weights = Weights(parameters, tasks, parameters["torso.0.weight"].dim() == 3)
        vector = torch.relu(weights.table("task.table")).unsqueeze(2)  # one row for each task
        encoded, context = self._encode(weights, vector, inputs)
        beside = context.expand(-1, -1, encoded.shape[2], -1)
        return weights.layers("torso", self.depth + 1, torch.cat((encoded, beside), dim=-1))

    @abstractmethod
    def _perceptrons(self) -> Iterable[tuple[str, int, list[int]]]:
        """Return name, stack and sizes of each perceptron before the torso, in the order of draws."""

    @abstractmethod
    def _encode(self, weights: Weights, vector: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the torso sees: encoded inputs [S, T, B, embedding], context [S, T, 1, embedding].

        Args:
            weights: of this evaluation.
            vector: relu of the tasks' vectors, [S, T, 1, embedding].
            inputs: [T, B, I].
        """
