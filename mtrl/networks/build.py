"""What a configuration asks of a network, as the arguments of `make_network`."""

from __future__ import annotations

from typing import Any, Literal

from mtrl.config.schema import NetworkConfig
from mtrl.errors import UserError
from mtrl.networks.base import NETWORKS
from mtrl.networks.mlp import MLP

# Output ranges of the public Meta-World+ code: near-zero first actions and values.
_HEAD_RANGE = {"actor": 1e-3, "critic": 3e-3}


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
