"""Makes networks from a name and plain arguments, which exported policies store; any nn.Module will do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtrl.errors import UserError
from mtrl.networks.base import NETWORKS, OF_IDENTITY, SIZES, InitialParameters, Network, Parameters
from mtrl.networks.identity import Kind, Rows, TaskIdentity, read_rows
from mtrl.networks.initial import Layout
from mtrl.networks.layers import Weights

if TYPE_CHECKING:
    from mtrl.config.schema import NetworkConfig

# From the public Meta-World+ code: first actions and values are near zero.
_HEAD_RANGE = {"actor": 1e-3, "critic": 3e-3}
_HEAD_GAIN = {"actor": 1e-2, "critic": 1.0}  # of PPO in CleanRL and Stable-Baselines3
Role = Literal["actor", "critic"]
_UNSAID = (*SIZES, *OF_IDENTITY, "actions", "role", "head_range")


def make_network(architecture: str, arguments: Mapping[str, Any]) -> Network:
    """Return the network of a name in NETWORKS or of "package.module:Name".

    An ordinary nn.Module is called as `Name(inputs=..., outputs=..., num_tasks=..., **options)`; see
    `ModuleNetwork`. Any other class is a `Network` and is called with all arguments.

    Args:
        architecture: the name.
        arguments: the SIZES, and the options of the class; as `network_arguments` returns them.

    Raises:
        UserError: unknown architecture, an option that its class does not take or a value that it refuses, or
            a module that cannot be evaluated for several tasks.
    """
    cls = NETWORKS[architecture]
    sizes = {name: arguments[name] for name in SIZES}
    options = {name: value for name, value in arguments.items() if name not in sizes}
    try:
        if _is_module(cls):
            identity = {name: options.pop(name) for name in OF_IDENTITY if name in options}
            return ModuleNetwork(functools.partial(cls, **options), **sizes, **identity)
        network: Network = cls(**sizes, **options)
    except ValueError as error:
        raise UserError(f"network {architecture}: {error}") from error
    except TypeError as error:
        raise UserError(
            f"network.architecture={architecture} cannot be made with inputs, outputs, num_tasks and "
            f"network.options {options}: {error}."
        ) from error
    return network


def check_networks(config: NetworkConfig, task_names: Sequence[str]) -> None:
    """Refuse settings of which no networks can be made, before anything starts; as `network_arguments`."""
    for role in ("actor", "critic"):
        arguments = network_arguments(config, role, stack=1, inputs=1, outputs=2, task_names=task_names)
        if hasattr(NETWORKS[config.architecture], "layout"):  # takes no memory yet
            make_network(config.architecture, arguments)


def _check(config: NetworkConfig) -> None:
    cls, name = NETWORKS[config.architecture], config.architecture
    if config.heads == "per_task" and "per_task_heads" not in vars(cls).get("given", ()):
        raise UserError(f"network.heads=per_task needs an architecture with task heads (mlp); found {name}.")
    accepted = (
        ModuleNetwork.identities if _is_module(cls) else getattr(cls, "identities", ("one_hot", "none"))
    )
    if config.task_identity not in accepted:
        raise UserError(
            f"network.task_identity must be {' or '.join(accepted)} for the network {name}, which tells "
            f"tasks apart in its own way; found {config.task_identity}."
        )
    if (config.task_identity == "file") != (config.identity_file is not None):
        raise UserError(
            "network.task_identity=file and network.identity_file go together; found "
            f"task_identity={config.task_identity}, identity_file={config.identity_file}."
        )


def network_arguments(
    config: NetworkConfig,
    role: Role,
    *,
    stack: int,
    inputs: int,
    outputs: int,
    task_names: Sequence[str],
    actions: int = 0,
) -> dict[str, Any]:
    """Return the plain arguments of the actor's or the critics' network.

    An architecture lists in its attribute `given` the fields of the configuration that it takes (the MLP:
    width, depth, heads and others). Its further arguments come from `network.options`, and over them from
    `network.actor_options` or `network.critic_options`.

    Args:
        config: of the networks.
        role: "actor" or "critic".
        stack: S.
        inputs: I, without the task identity.
        outputs: columns of the outputs.
        task_names: the T tasks.
        actions: how many of the I inputs are actions; they are the last ones.

    Raises:
        UserError: unknown architecture; task heads, or a task identity, that it does not take; a task
            identity from a file without a file, or a file without that; a file that cannot be read or lacks a
            task.
    """
    _check(config)
    actor, cls = role == "actor", NETWORKS[config.architecture]
    fields: dict[str, Any] = {
        "width": config.actor_width if actor else config.critic_width,
        "depth": config.actor_depth if actor else config.critic_depth,
        "activation": config.activation,
        "layer_norm": config.actor_layer_norm if actor else config.critic_layer_norm,
        "per_task_heads": config.heads == "per_task",
        "head_range": _HEAD_RANGE[role],
        "head_gain": _HEAD_GAIN[role],
        "residual": not actor and config.critic_block == "residual",
        "initialisation": config.initialisation,
    }
    named = vars(cls).get("given", ())
    chosen = {name: value for name, value in fields.items() if name in named}
    taken = inspect.signature(cls).parameters
    chosen |= {name: value for name, value in {"actions": actions, "role": role}.items() if name in taken}
    if config.task_identity in ("embedding", "file"):
        chosen["identity_width"] = config.identity_width
    if config.identity_file is not None:
        chosen["identity_rows"] = read_rows(config.identity_file, task_names)
    of_role = config.actor_options if actor else config.critic_options
    return {
        "stack": stack,
        "num_tasks": len(task_names),
        "inputs": inputs,
        "outputs": outputs,
        "task_identity": config.task_identity,
        **chosen,
        **config.options,
        **of_role,
    }


def describe_network(architecture: str, arguments: Mapping[str, Any]) -> str:
    """Return the architecture and its options in words: "moore 3x400, experts 4"."""
    options = {name: value for name, value in arguments.items() if name not in _UNSAID}
    depth, width = options.pop("depth", None), options.pop("width", None)
    sizes = "x".join(str(number) for number in (depth, width) if number is not None)
    if architecture == "mlp":  # most of its options are switches that are off; config.yaml has all
        options = {}
    words = [" ".join([architecture, *([sizes] if sizes else [])])]
    return ", ".join([*words, *(f"{name.replace('_', ' ')} {value}" for name, value in options.items())])


def _is_module(cls: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, nn.Module)


class ModuleNetwork:
    """S copies of an ordinary module, a `Network`: its forward maps inputs [B, I] to outputs [B, outputs].

    The module gets the I inputs and after them the columns of the task identity: with "one_hot" T columns,
    with "none" no column (`TaskIdentity`). Rows of a batch must not depend on each other. The module must run
    under torch.vmap: no buffers (the statistics of a BatchNorm could be of one task or of all), no random
    numbers, no branches on values.

    Args:
        make: `make(inputs=..., outputs=..., num_tasks=...)` returns a fresh module; `inputs` counts the
            identity's columns. Initial parameters come from torch's default generator.
        stack: S.
        num_tasks: T.
        inputs: I, without the task identity.
        outputs: columns of the outputs.
        task_identity: see `TaskIdentity`, like the two arguments that follow.
        identity_width: columns of a learnt or projected identity.
        identity_rows: the given numbers of "file".

    Raises:
        UserError: the module has buffers, frozen parameters or no parameters, gives other outputs, does not
            run under vmap, or its rows depend on each other.
    """

    identities = ("one_hot", "embedding", "file", "none")

    def __init__(
        self,
        make: Callable[..., nn.Module],
        *,
        stack: int,
        num_tasks: int,
        inputs: int,
        outputs: int,
        task_identity: Kind = "one_hot",
        identity_width: int = 32,
        identity_rows: Rows | None = None,
    ) -> None:
        self.stack, self.num_tasks = stack, num_tasks
        self._identity = TaskIdentity(task_identity, num_tasks, identity_width, identity_rows)
        columns = inputs + self._identity.columns
        self._make = functools.partial(make, inputs=columns, outputs=outputs, num_tasks=num_tasks)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
            self._module = self._make()
        self._dims = {name: value.dim() for name, value in self._module.named_parameters()}
        self._check(inputs, outputs)

    def initial_parameters(self, generator: torch.Generator) -> InitialParameters:
        """Return S fresh modules' parameters, stacked, and those of the task identity: all are shared."""
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also set the generators of GPUs.
            torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            modules = [self._make() for _ in range(self.stack)]
        fresh = [dict(module.named_parameters()) for module in modules]
        shared = {name: torch.stack([copy[name].detach() for copy in fresh]) for name in self._dims}
        of_identity, own_rows = self._identity.layout()
        drawn = Layout(of_identity, {}, own_rows).drawn(generator)
        return InitialParameters(shared | drawn.shared, {}, own_rows)

    def apply(self, parameters: Parameters, inputs: Tensor, tasks: Tensor | None = None) -> Tensor:
        """Map inputs [T, B, I] to outputs [S, T, B, outputs] (`Network.apply`)."""
        own = {name: parameters[name] for name in self._dims}
        name, dims = next(iter(self._dims.items()))
        joint = own[name].dim() == dims + 1
        inputs = self._identity.append(Weights(parameters, tasks, joint), inputs)
        twins = torch.vmap(self._call, in_dims=(0, None))
        if joint:
            rows: Tensor = twins(own, inputs.flatten(0, 1))
            outputs: Tensor = rows.unflatten(1, inputs.shape[:2])
            return outputs
        per_task: Tensor = torch.vmap(twins)(own, inputs)
        return per_task.transpose(0, 1)

    def _call(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        result = functional_call(self._module, parameters, (inputs,))
        if not isinstance(result, Tensor):
            name, found = type(self._module).__name__, type(result).__name__
            raise UserError(f"{name} must return one tensor [B, outputs]; found a {found}.")
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
        frozen = [key for key, value in self._module.named_parameters() if not value.requires_grad]
        if frozen:
            raise UserError(
                f"{name} has frozen parameters ({', '.join(frozen[:3])}), which would be trained: an agent "
                "draws and moves all parameters of its networks. Leave requires_grad on."
            )
        others = [key for key, value in self._module.named_parameters() if value.dtype != torch.float32]
        if others:
            raise UserError(
                f"{name} has parameters that are not float32 ({', '.join(others[:3])}), which is what agents "
                "compute in. torch.tensor of a NumPy number, for instance, is float64: pass dtype."
            )
        if taken := [key for key in self._identity.layout()[0] if key in self._dims]:
            raise UserError(
                f"{name} has a part of the name of the task identity's parameters ({', '.join(taken)}): call "
                "it something else than identity."
            )
        if not self._dims:
            raise UserError(f"{name} has no parameters: there is nothing to train.")
        generator = torch.Generator().manual_seed(0)
        parameters, _, own_rows = self.initial_parameters(generator)
        for key, value in parameters.items():  # behind a last layer of zeros no input would be seen
            noise = 0.01 * torch.randn(value.shape, generator=generator)
            parameters[key] = torch.where(value == 0, noise.to(value), value)
        rows = {
            key: value.transpose(0, 1) if key in own_rows else value.expand(self.num_tasks, *value.shape)
            for key, value in parameters.items()
        }
        x = torch.rand(self.num_tasks, 5, inputs, generator=generator)
        try:
            whole, inner = self.apply(rows, x), self.apply(rows, x[:, 1:4])
        except UserError:
            raise
        except Exception as error:  # code of users may raise anything
            raise UserError(
                f"{name} cannot be evaluated for several tasks at once: {type(error).__name__}: {error}"
            ) from error
        found = inner.shape
        if found != (self.stack, self.num_tasks, 3, outputs):
            raise UserError(f"{name} must map [3, I] to [3, {outputs}]; found {list(found[2:])}.")
        # Far above the rounding of batches of different sizes; statistics of 3 and 5 rows differ by more.
        if bool((whole[:, :, 1:4] - inner).abs().max() > 1e-3 * whole.abs().max()):
            raise UserError(
                f"{name}: the outputs of a row depend on the other rows of its batch (BatchNorm, a mean over "
                "rows), which would mix tasks in some evaluations and not in others; expected a row by row "
                "function, such as LayerNorm."
            )
