"""A network from its name and plain arguments, as exported policies store them; those of a configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from mtrl.errors import UserError
from mtrl.networks.base import NETWORKS, Network
from mtrl.networks.mlp import MLP
from mtrl.networks.module import ModuleNetwork

if TYPE_CHECKING:
    from mtrl.config.schema import NetworkConfig

# Output ranges of the public Meta-World+ code: near-zero first actions and values.
_HEAD_RANGE = {"actor": 1e-3, "critic": 3e-3}


def make_network(architecture: str, arguments: Mapping[str, Any]) -> Network:
    """Return the network of a name in NETWORKS or of "package.module:Name".

    An ordinary nn.Module is made as `Name(inputs=..., outputs=..., num_tasks=..., **its options)`
    (`ModuleNetwork` says of what inputs), a `Network` of one's own with all the arguments.

    Args:
        architecture: the name.
        arguments: stack, num_tasks, inputs, outputs, task_identity, and the options of the class.

    Raises:
        UserError: an unknown architecture, an option that its class does not take, a module that cannot be a
            network of several tasks.
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
    config: NetworkConfig,
    role: Literal["actor", "critic"],
    *,
    stack: int,
    num_tasks: int,
    inputs: int,
    outputs: int,
) -> dict[str, Any]:
    """Return the arguments of the actor's or the critics' network, plain values.

    Widths, depths and heads of the configuration are the MLP's; other classes take `network.options`.

    Raises:
        UserError: an unknown architecture, or task heads for another than the MLP.
    """
    arguments = {
        "stack": stack,
        "num_tasks": num_tasks,
        "inputs": inputs,
        "outputs": outputs,
        "task_identity": config.task_identity,
    }
    if NETWORKS[config.architecture] is not MLP:
        if config.heads == "per_task":
            raise UserError(f"network.heads=per_task is made for the mlp; found {config.architecture}.")
        return arguments | dict(config.options)
    actor = role == "actor"
    return arguments | {
        "width": config.actor_width if actor else config.critic_width,
        "depth": config.actor_depth if actor else config.critic_depth,
        "activation": config.activation,
        "layer_norm": config.actor_layer_norm if actor else config.critic_layer_norm,
        "per_task_heads": config.heads == "per_task",
        "head_range": _HEAD_RANGE[role],
        "residual": not actor and config.critic_block == "residual",
    }
