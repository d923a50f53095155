"""The interface of networks: pure functions of named parameters, evaluated for all tasks at once.

Letters: S stacked networks (an actor 1, twin critics 2), T tasks, B batch per task. Shared parameters are
joint, `[S, ...]`, or per task, `[T, S, ...]`. The second form gives the gradients of all tasks, also at
parameters that differ between tasks, in one batched pass. In place of S there may be S*n for n experts of
each network, or 1 for a parameter that the stacked networks share.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mtrl.registry import Registry

Parameters = Mapping[str, Tensor]


class InitialParameters(NamedTuple):
    """Fresh parameters of a network, by kind."""

    shared: dict[str, Tensor]  # [S, ...]; every task's loss depends on them, so their gradients are combined
    heads: dict[str, Tensor]  # [T, S, ...]; row t belongs to task t and steps by that task's gradient
    own_rows: frozenset[str]  # names of shared parameters [S, T, ...]; task t's loss depends on row t alone


class Network(Protocol):
    """S networks of one architecture for T tasks, mapping inputs [T, B, I] to outputs [S, T, B, outputs].

    A network may have a method `project`, see `Projects`. A class may have two attributes: `given` names
    further arguments that it takes from `network_arguments`, and `identities` the values of
    `network.task_identity` that it accepts (default: one_hot and none).
    """

    def initial_parameters(self, generator: torch.Generator) -> InitialParameters:
        """Draw fresh parameters, on the CPU."""

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Evaluate with joint or per-task parameters; differentiable.

        Args:
            parameters: under the names of `initial_parameters`. Shared ones are all joint or all per task;
                an own-row parameter per task is [T, S, ...].
            inputs: [T, B, I]; with `tasks` [N, B, I].
            tasks: int64 [N], the tasks of the inputs; None: all. Joint parameters come with the heads of all
                T tasks; per-task parameters and their heads are those of these N tasks.
        """


@runtime_checkable
class Projects(Protocol):
    """A network whose parameters must stay in a set, such as weights of unit norm."""

    def project(self, parameters: Parameters) -> None:
        """Move joint parameters into the set, in place; called after each descent step.

        It must not read back to the host, so that a CUDA graph can hold a step.
        """


SIZES = ("stack", "num_tasks", "inputs", "outputs", "task_identity")
"""Arguments of every network. Where its constructor names them it also gets `actions`, the number of actions
at the end of the inputs (0 but for SAC's critics), and `role`, "actor" or "critic"."""

OF_IDENTITY = ("identity_width", "identity_rows")
"""Arguments that come with the task identities "embedding" and "file" (`TaskIdentity`)."""

NETWORKS = Registry(
    "network",
    {
        "mlp": "mtrl.networks.mlp:MLP",
        "brc": "mtrl.networks.brc:BRC",
        "moore": "mtrl.networks.moore:MOORE",
        "soft_modules": "mtrl.networks.soft_modules:SoftModules",
        "simba": "mtrl.networks.simba:SimBa",
        "simba_v2": "mtrl.networks.simba_v2:SimbaV2",
        "paco": "mtrl.networks.paco:PaCo",
        "care": "mtrl.networks.care:CARE",
        "film": "mtrl.networks.film:FiLM",
    },
    given=(*SIZES, *OF_IDENTITY, "actions", "role"),
    bibliography=Path(__file__).with_name("references.bib"),
)
