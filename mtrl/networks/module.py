"""Any torch.nn.Module as a network for all tasks: functional calls under vmap, for twins and per task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtrl.errors import UserError
from mtrl.networks.base import InitialParameters, Parameters


class ModuleNetwork:
    """S copies of an ordinary module, a `Network`: its forward maps inputs [B, I] to outputs [B, outputs].

    With the task identity "one_hot" the module's inputs are I + T columns, of which the last T hold the
    task's one-hot identity; with "none" they are the I columns alone. Rows of a batch must not depend on each
    other, and the module must run under torch.vmap: no buffers (those of BatchNorm are statistics of one
    task's batch or of all tasks', and nobody could say whose), no random numbers, no branches on values.

    Args:
        make: `make(inputs=..., outputs=..., num_tasks=...)` returns a fresh module, columns of the identity
            counted among the inputs; it draws its initial parameters from torch's default generator.
        stack: S.
        num_tasks: T.
        inputs: I, without the task identity.
        outputs: columns of the outputs.
        task_identity: "one_hot" or "none".

    Raises:
        UserError: the module has buffers or no parameters, gives other outputs, or does not run under vmap.
    """

    def __init__(
        self,
        make: Callable[..., nn.Module],
        *,
        stack: int,
        num_tasks: int,
        inputs: int,
        outputs: int,
        task_identity: Literal["one_hot", "none"] = "one_hot",
    ) -> None:
        self.stack, self.num_tasks, self.one_hot = stack, num_tasks, task_identity == "one_hot"
        columns = inputs + (num_tasks if self.one_hot else 0)
        self._make: Callable[[], nn.Module] = functools.partial(
            make, inputs=columns, outputs=outputs, num_tasks=num_tasks
        )
        with torch.random.fork_rng(devices=[]):
            self._module = self._make()
        self._dims = {name: value.dim() for name, value in self._module.named_parameters()}
        self._check(inputs, outputs)

    def initial_parameters(self, generator: torch.Generator) -> InitialParameters:
        """Return S fresh modules' parameters, stacked: all of them shared by all tasks."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            modules = [self._make() for _ in range(self.stack)]
        fresh = [dict(module.named_parameters()) for module in modules]
        shared = {name: torch.stack([copy[name].detach() for copy in fresh]) for name in self._dims}
        return InitialParameters(shared, {}, frozenset())

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        own = {name: parameters[name] for name in self._dims}
        if self.one_hot:
            identity = torch.eye(self.num_tasks, dtype=inputs.dtype, device=inputs.device)
            identity = identity if tasks is None else identity.index_select(0, tasks)
            columns = identity.unsqueeze(1).expand(-1, inputs.shape[1], -1)
            inputs = torch.cat((inputs, columns), dim=-1)
        name, dims = next(iter(self._dims.items()))
        twins = torch.vmap(self._call, in_dims=(0, None))
        if own[name].dim() == dims + 1:
            outputs: Tensor = twins(own, inputs.flatten(0, 1))
            joint: Tensor = outputs.unflatten(1, inputs.shape[:2])
            return joint
        per_task: Tensor = torch.vmap(twins)(own, inputs)
        return per_task.transpose(0, 1)

    def _call(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        result: Tensor = functional_call(self._module, parameters, (inputs,))
        return result

    def _check(self, inputs: int, outputs: int) -> None:
        name = type(self._module).__name__
        buffers = [key for key, _ in self._module.named_buffers()]
        if buffers:
            raise UserError(
                f"{name} has buffers ({', '.join(buffers[:3])}), which a network of several tasks cannot "
                "keep: statistics of a batch would be of one task or of all. Use LayerNorm instead of "
                "BatchNorm, and compute constants in forward."
            )
        if not self._dims:
            raise UserError(f"{name} has no parameters: there is nothing to train.")
        parameters = self.initial_parameters(torch.Generator().manual_seed(0)).shared
        rows = {key: value.expand(self.num_tasks, *value.shape) for key, value in parameters.items()}
        try:
            found = self.apply(rows, torch.zeros(self.num_tasks, 3, inputs)).shape
        except RuntimeError as error:
            raise UserError(f"{name} cannot be evaluated for several tasks at once: {error}") from error
        if found != (self.stack, self.num_tasks, 3, outputs):
            raise UserError(f"{name} must map [3, I] to [3, {outputs}]; found {list(found[2:])}.")
