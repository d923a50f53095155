"""A network from its name and plain arguments, as exported policies store them; those of a configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from mtrl.errors import UserError
from mtrl.networks.base import NETWORKS, Network
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
    config: NetworkConfig, role: Literal["actor", "critic"], **sizes: int
) -> dict[str, Any]:
    """Return the arguments of the actor's or the critics' network, plain values.

    A class names in `given` the fields of the configuration that it takes (the MLP: widths, depths, heads);
    the others are `network.options`.

    Args:
        config: of the networks.
        role: which of them.
        sizes: stack, num_tasks, inputs and outputs.

    Raises:
        UserError: an unknown architecture, or task heads for one that takes none.
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
        raise UserError(f"network.heads=per_task is made for the mlp; found {config.architecture}.")
    fields = {name: value for name, value in fields.items() if name in named}
    return {**sizes, "task_identity": config.task_identity, **fields, **config.options}
