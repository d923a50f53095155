"""What gradients and agents ask of a network: pure functions of named parameters, for all tasks at once.

Letters: S stacked networks (an actor 1, twin critics 2), T tasks, B batch per task. Shared parameters come
joint, `[S, ...]`, or with a leading task axis, `[T, S, ...]`, one value per task: the second form makes
per-task gradients (and per-task perturbations) one batched pass.
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

    shared: dict[str, Tensor]  # [S, ...]: every task's loss depends on them, these are combined
    heads: dict[str, Tensor]  # [T, S, ...]: row t is task t's alone; each steps by its own task's gradient
    own_rows: frozenset[str]  # shared ones [S, T, ...] of which task t's loss depends on row t alone


class PerTaskParameters(dict[str, Tensor]):
    """Per-task parameters, and the places where their gradients are wanted.

    A layer that can form the gradient of its parameter right at its place saves a copy of the Jacobian. It
    need not: whoever asked for the gradients copies those that come as tensors of their own.
    """

    def __init__(self, values: Parameters, places: Parameters) -> None:
        super().__init__(values)
        self._places = dict(places)

    def claim_place(self, name: str) -> Tensor | None:
        """Return the place of a parameter's gradient, once; None: already claimed, or wanted nowhere.

        Only one use of a parameter may write there: autograd adds up the gradients of several.
        """
        return self._places.pop(name, None)


class Network(Protocol):
    """S networks of one architecture for T tasks, mapping inputs [T, B, I] to outputs [S, T, B, outputs]."""

    def initial_parameters(self, generator: torch.Generator) -> InitialParameters:
        """Draw fresh parameters, on the CPU."""
        ...

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Evaluate with joint or per-task parameters; differentiable.

        Args:
            parameters: under the names of `initial_parameters`; shared ones all joint or all per task, an
                own-row one per task being [T, S, ...].
            inputs: [T, B, I]; with `tasks` [N, B, I].
            tasks: int64 [N], which tasks the inputs are of; None: all. Joint parameters and their heads are
                those of all tasks all the same, per-task ones and their heads those of these N.
        """
        ...


NETWORKS = Registry(
    "network",
    {"mlp": "mtrl.networks.mlp:MLP"},
    given=("stack", "num_tasks", "inputs", "outputs", "task_identity"),
)
