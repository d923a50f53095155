"""A network from its name and arguments. Knows no configuration, so that a policy is loaded without one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from mtrl.errors import UserError
from mtrl.networks.base import NETWORKS, Network
from mtrl.networks.module import ModuleNetwork

_OF_EVERY_NETWORK = ("stack", "num_tasks", "inputs", "outputs", "task_identity")


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
    sizes = {name: arguments[name] for name in _OF_EVERY_NETWORK}
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
