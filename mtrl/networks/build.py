"""The network that a configuration asks for."""

from __future__ import annotations

import functools
import inspect
from typing import Literal

from torch import nn

from mtrl.config.schema import NetworkConfig
from mtrl.errors import UserError
from mtrl.networks.base import NETWORKS, Network
from mtrl.networks.mlp import MLP
from mtrl.networks.module import ModuleNetwork

# Output ranges of the public Meta-World+ code: near-zero first actions and values.
_HEAD_RANGE = {"actor": 1e-3, "critic": 3e-3}


def build_network(
    config: NetworkConfig,
    role: Literal["actor", "critic"],
    *,
    stack: int,
    num_tasks: int,
    inputs: int,
    outputs: int,
) -> Network:
    """Return the actor's or the critics' network.

    `network.architecture` names a class: an ordinary nn.Module, made as
    `Name(inputs=..., outputs=..., num_tasks=..., **network.options)` (`ModuleNetwork` says of what inputs),
    or a `Network` of one's own, made as `Name(stack=..., num_tasks=..., inputs=..., outputs=...,
    task_identity=..., **network.options)`. Widths, depths and heads of the configuration are the MLP's.

    Raises:
        UserError: an unknown architecture, an option that its class does not take, a module that cannot be a
            network of several tasks.
    """
    sizes = {"stack": stack, "num_tasks": num_tasks, "inputs": inputs, "outputs": outputs}
    architecture = NETWORKS[config.architecture]
    if architecture is MLP:
        return MLP(
            **sizes,
            task_identity=config.task_identity,
            width=config.actor_width if role == "actor" else config.critic_width,
            depth=config.actor_depth if role == "actor" else config.critic_depth,
            activation=config.activation,
            layer_norm=config.actor_layer_norm if role == "actor" else config.critic_layer_norm,
            per_task_heads=config.heads == "per_task",
            head_range=_HEAD_RANGE[role],
        )
    if config.heads == "per_task":
        raise UserError(f"network.heads=per_task is made for the mlp; found {config.architecture}.")
    try:
        if inspect.isclass(architecture) and issubclass(architecture, nn.Module):
            make = functools.partial(architecture, **config.options)
            return ModuleNetwork(make, **sizes, task_identity=config.task_identity)
        network: Network = architecture(**sizes, task_identity=config.task_identity, **config.options)
    except TypeError as error:
        raise UserError(
            f"network.architecture={config.architecture} cannot be made with inputs, outputs, num_tasks and "
            f"network.options {dict(config.options)}: {error}."
        ) from error
    return network
