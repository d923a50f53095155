"""What gradients and agents ask of a network: pure functions of named parameters, for all tasks at once.

Shapes: T tasks, B batch per task. Shared parameters come joint, `[...]`, or with a leading task axis,
`[T, ...]`, one value per task: the second form makes per-task gradients (and per-task perturbations) one
batched pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mtrl.registry import Registry

Parameters = Mapping[str, Tensor]


class InitialParameters(NamedTuple):
    """Fresh parameters of a network, by kind."""

    shared: dict[str, Tensor]  # every task's loss depends on them: these are combined
    heads: dict[str, Tensor]  # [T, ...], row t is task t's alone; each steps by its own task's gradient
    own_rows: frozenset[str]  # shared ones [..., T, ...] of which a task's loss depends on its own row alone


class Network(Protocol):
    """An architecture for T tasks, mapping inputs [T, B, I] to outputs [..., T, B, outputs]."""

    def initial_parameters(self, generator: torch.Generator) -> InitialParameters:
        """Draw fresh parameters."""
        ...

    def apply(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """Evaluate with joint or per-task parameters; differentiable."""
        ...

    def of_tasks(self, parameters: Parameters, tasks: Tensor | None) -> Parameters:
        """Joint parameters for inputs [N, B, I] of the tasks of an index [N] only; None: of all."""
        ...


NETWORKS = Registry("network", {"mlp": "mtrl.networks.mlp:MLP"})
