"""Makes networks from a name and plain arguments, which exported policies store; any nn.Module will do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtrl.errors import UserError
from mtrl.networks.base import NETWORKS, InitialParameters, Network, Parameters

if TYPE_CHECKING:
    from mtrl.config.schema import NetworkConfig

# From the public Meta-World+ code: first actions and values are near zero.
_HEAD_RANGE = {"actor": 1e-3, "critic": 3e-3}


def make_network(architecture: str, arguments: Mapping[str, Any]) -> Network:
    """Return the network of a name in NETWORKS or of "package.module:Name".

    An ordinary nn.Module is called as `Name(inputs=..., outputs=..., num_tasks=..., **options)`; see
    `ModuleNetwork`. Any other class is a `Network` and is called with all arguments.

    Args:
        architecture: the name.
        arguments: stack, num_tasks, inputs, outputs, task_identity, and the options of the class.

    Raises:
        UserError: unknown architecture, an option that its class does not take, or a module that cannot be
            evaluated for several tasks.
    """
    cls = NETWORKS[architecture]
    sizes = {name: arguments[name] for name in NETWORKS.given}
    options = {name: value for name, value in arguments.items() if name not in sizes}
    try:
        if inspect.isclass(cls) and issubclass(cls, nn.Module):
            return ModuleNetwork(functools.partial(cls, **options), **sizes)
        network: Network = cls(**sizes, **options)
    except TypeError as error:
        raise UserError(
            f"network.architecture={architecture} cannot be made with inputs, outputs, num_tasks and "
            f"network.options {options}: {error}."
        ) from error
    return network


def network_arguments(
    config: NetworkConfig, role: Literal["actor", "critic"], **sizes: int
) -> dict[str, Any]:
    """Return the plain arguments of the actor's or the critics' network.

    An architecture lists in its attribute `given` the fields of the configuration that it takes (the MLP:
    width, depth, heads and others). Its further arguments come from `network.options`.

    Args:
        config: of the networks.
        role: "actor" or "critic".
        sizes: stack, num_tasks, inputs and outputs.

    Raises:
        UserError: unknown architecture, or task heads for one that takes none.
    """
    actor = role == "actor"
    fields = {
        "width": config.actor_width if actor else config.critic_width,
        "depth": config.actor_depth if actor else config.critic_depth,
        "activation": config.activation,
        "layer_norm": config.actor_layer_norm if actor else config.critic_layer_norm,
        "per_task_heads": config.heads == "per_task",
        "head_range": _HEAD_RANGE[role],
        "residual": not actor and config.critic_block == "residual",
    }
    named = vars(NETWORKS[config.architecture]).get("given", ())
    if config.heads == "per_task" and "per_task_heads" not in named:
        found = config.architecture
        raise UserError(f"network.heads=per_task needs an architecture with task heads (mlp); found {found}.")
    fields = {name: value for name, value in fields.items() if name in named}
    return {**sizes, "task_identity": config.task_identity, **fields, **config.options}


class ModuleNetwork:
    """S copies of an ordinary module, a `Network`: its forward maps inputs [B, I] to outputs [B, outputs].

    With the task identity "one_hot" the module gets I + T columns, of which the last T are the one-hot task
    identity; with "none" it gets I columns. Rows of a batch must not depend on each other. The module must
    run under torch.vmap: no buffers (the statistics of a BatchNorm could be of one task or of all), no random
    numbers, no branches on values.

    Args:
        make: `make(inputs=..., outputs=..., num_tasks=...)` returns a fresh module; `inputs` counts the
            identity's columns. Initial parameters come from torch's default generator.
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
        self._make = functools.partial(make, inputs=columns, outputs=outputs, num_tasks=num_tasks)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
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
                "keep: statistics of a batch would be those of one task or of all. Use LayerNorm instead "
                "of BatchNorm, and compute constants in forward."
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
