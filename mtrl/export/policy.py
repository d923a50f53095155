"""Loads an exported policy, which computes actions from numpy observations."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mtrl.errors import UserError, unknown_name
from mtrl.gradients.per_task import FlatParameters
from mtrl.networks.base import NETWORKS, SIZES, Network
from mtrl.networks.gaussian import Squash, mode_action, raw_action, squashed
from mtrl.networks.initial import Layout
from mtrl.networks.layers import ObservationNorm
from mtrl.networks.make import make_network
from mtrl.registry import options_of

FORMAT = 1
TENSORS_NAME = "policy.safetensors"
SPEC_NAME = "policy.json"
PARAMETER = "actor."  # prefix of the names of the network's parameters
MEAN, DEVIATION = "observation.mean", "observation.deviation"
_LARGEST_SPEC = 16 << 20  # bytes


class Policy:
    """The policy of a trained agent; `load_policy` returns one.

    Attributes:
        task_names: the tasks whose observations `predict` takes, in order.
        description: content of policy.json: tasks, suite, network, training, success, versions.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        network: Network,
        flat: FlatParameters,
        norm: ObservationNorm | None,
        generator: torch.Generator,
    ) -> None:
        self.description = description
        self._network, self._flat, self._norm, self._generator = network, flat, norm, generator
        self._tasks: Tensor | None = None  # int64 [1], the task of all rows; None: rows of all tasks
        self.task_names = tuple(description["tasks"])
        self._obs_dim = int(description["obs_dim"])
        self._squash: Squash = description["squash"]

    def for_task(self, task: str) -> Self:
        """Return the policy for observations [N, O], or a single one [O], of one task.

        Its actions equal those of the whole policy up to rounding, which depends on the number of rows.

        Raises:
            UserError: the policy has no such task; names the nearest one.
        """
        if task not in self.task_names:
            raise UserError(unknown_name("task of this policy", task, self.task_names))
        one = copy.copy(self)
        one.task_names = (task,)
        index = self.description["tasks"].index(task)
        one._tasks = torch.tensor([index], device=self._flat.vector.device)
        return one

    @torch.no_grad()
    def predict(
        self, observation: ArrayLike, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[NDArray[np.float32], Any]:
        """Return actions in [-1, 1] and `state`, as Stable-Baselines3's `predict` does.

        On the same machine, device, number of threads and version of torch the deterministic actions for all
        tasks equal those of the run's evaluations bit for bit.

        Args:
            observation: of the run's suite, [T*E, O], where row t * E + e belongs to task t; for one task
                [N, O] or [O].
            state: returned unchanged, as the policy has no memory.
            episode_start: ignored.
            deterministic: return the policy's mode; False: sample with the generator seeded in `load_policy`.

        Returns:
            float32 [T*E, A], or [A] for a single observation.

        Raises:
            UserError: observations of another shape.
        """
        rows = np.asarray(observation, np.float32)
        single = rows.ndim == 1
        rows = rows[None] if single else rows
        tasks = len(self.task_names)
        if rows.ndim != 2 or rows.shape[1] != self._obs_dim or len(rows) % tasks or not len(rows):
            size, found = self._obs_dim, f"found {list(np.shape(observation))}."
            if tasks == 1:
                raise UserError(f"observations must have shape [{size}] or [N, {size}]; {found}")
            raise UserError(
                f"observations must have shape [N, {size}], N a multiple of {tasks} (one row for each "
                f"task, or more); {found} policy.for_task(name) takes those of one task."
            )
        # Copied to memory of torch, which is aligned as in evaluations: rounding depends on the alignment.
        vector = self._flat.vector
        shape = tasks, len(rows) // tasks, self._obs_dim
        obs = torch.empty(shape, dtype=vector.dtype, device=vector.device)
        obs.copy_(torch.from_numpy(np.ascontiguousarray(rows)).view_as(obs))
        obs = obs if self._norm is None else self._norm(obs)
        outputs = self._network.apply(self._flat.named(), obs, self._tasks)[0]
        if deterministic:
            action = mode_action(outputs, self._squash)
        else:
            half = (*outputs.shape[:-1], outputs.shape[-1] // 2)
            noise = torch.randn(half, generator=self._generator, dtype=outputs.dtype, device=outputs.device)
            action = squashed(raw_action(outputs, noise), self._squash)
        result: NDArray[np.float32] = action.flatten(0, 1).cpu().numpy().copy()
        return (result[0] if single else result), state


def load_policy(
    path: str | Path, *, device: str = "cpu", seed: int = 0, architecture: str | None = None
) -> Policy:
    """Load a policy that `mtrl-export` wrote. Needs torch, numpy and safetensors.

    It runs no code that the files name, so that they may come from anywhere.

    Args:
        path: the folder with policy.json and policy.safetensors.
        device: where to compute.
        seed: of sampled actions.
        architecture: the class of a network of your own, "package.module:Name" or "file.py:Name", which is
            imported. None: one of mtrl's networks, or one registered in `mtrl.networks.base.NETWORKS`.

    Raises:
        UserError: no such files, damaged ones or ones of another format; a network that is neither mtrl's nor
            registered, without `architecture`; a device that torch does not have.
    """
    folder = Path(path).expanduser()
    description, content = _read(folder)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).partition("\n")[0]
        raise UserError(f"device '{device}' cannot be used. Torch says: {reason}") from error
    tensors = read_tensors(content, str(folder / TENSORS_NAME))
    spec = description["network"]
    if architecture is None and spec["architecture"] not in NETWORKS:
        raise UserError(
            f"'{folder / SPEC_NAME}' names the network {spec['architecture']!r}, whose code would be run. If "
            f"you know that code, name it: load_policy(..., architecture={spec['architecture']!r})."
        )
    norm = None
    if MEAN in tensors:
        found = {"mean": tensors.pop(MEAN), "deviation": tensors.pop(DEVIATION, torch.empty(0))}
        if any(value.shape != (description["obs_dim"],) for value in found.values()):
            raise UserError(
                f"'{folder / TENSORS_NAME}' has a standardisation of other sizes than {SPEC_NAME}."
            )
        with _plain_defaults():
            norm = ObservationNorm(description["obs_dim"])
            norm.load_state_dict(found)
    architecture = architecture or spec["architecture"]
    try:
        described = hasattr(NETWORKS[architecture], "layout")
        if described and not _is_as_small(architecture, spec["arguments"], tensors):
            raise UserError(f"it describes a larger network than that in {TENSORS_NAME}.")
        with _plain_defaults():
            network = make_network(architecture, spec["arguments"])
            fresh = network.initial_parameters(torch.Generator().manual_seed(0))
    except (UserError, TypeError) as error:
        # TypeError: an argument of another kind, as text for a range.
        raise UserError(f"'{folder / SPEC_NAME}': {error}") from None
    flat = FlatParameters(*fresh)
    named = flat.named()
    found = {name.removeprefix(PARAMETER): tensor for name, tensor in tensors.items()}
    if {name: value.shape for name, value in named.items()} != {n: v.shape for n, v in found.items()}:
        raise UserError(
            f"the parameters in '{folder / TENSORS_NAME}' are not those of the network "
            f"{architecture}: expected {_shapes(named)}; found {_shapes(found)}."
        )
    for name, value in named.items():
        value.copy_(found[name])
    generator = torch.Generator(device).manual_seed(seed)
    return Policy(description, network, flat.to(device), None if norm is None else norm.to(device), generator)


@contextmanager
def _plain_defaults() -> Iterator[None]:
    """Make new tensors float32 on the CPU within the block, whatever the program's defaults are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def read_tensors(content: bytes, place: str) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file's content, on the CPU; `place` names it in messages.

    Raises:
        UserError: it is cut short, of another format, or holds other than 32-bit floats.
    """
    try:
        tensors: dict[str, Tensor] = load(content)  # checks sizes and offsets against the content
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        json.loads(header, object_pairs_hook=_without_doubles)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a type of numbers that torch lacks
        raise UserError(f"'{place}' is no .safetensors file: {error}.") from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise UserError(f"'{place}' must hold 32-bit floats; found {tensor.dtype} for '{name}'.")
    return tensors


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _is_as_small(architecture: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a network of mtrl's with these arguments is no larger than twice the file's parameters.

    A forged description could otherwise ask for any memory before the shapes are compared.
    """
    elements = sum(tensor.numel() for tensor in tensors.values())
    integers = {n for n, option in options_of(NETWORKS[architecture]).items() if option.annotation is int}
    for name, value in arguments.items():
        # Each integer counts parameters of some kind.
        if name in integers and not (type(value) is int and 0 <= value <= elements):
            return False
    layout: Layout = make_network(architecture, arguments).layout()  # type: ignore[attr-defined]
    return layout.size <= 2 * elements


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    try:
        with open(folder / SPEC_NAME, "rb") as file:
            text = file.read(_LARGEST_SPEC + 1)
        content = (folder / TENSORS_NAME).read_bytes()
    except OSError as error:
        raise UserError(
            f"no policy in '{folder}': expected {SPEC_NAME} and {TENSORS_NAME} as mtrl-export writes them "
            f"({error.strerror})."
        ) from error
    if len(text) > _LARGEST_SPEC:
        raise UserError(
            f"'{folder / SPEC_NAME}' does not describe a policy: it has more than {_LARGEST_SPEC:,} bytes."
        )
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{folder / SPEC_NAME}' is not JSON: {error}.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(
            f"'{folder / SPEC_NAME}' is not of format {FORMAT}, which this version of mtrl reads: export the "
            "policy again."
        )
    network, tasks = description.get("network"), description.get("tasks")
    if not (
        isinstance(network, dict)
        and isinstance(network.get("architecture"), str)
        and isinstance(network.get("arguments"), dict)
        and network["arguments"].keys() >= set(SIZES)
        and isinstance(tasks, list)
        and all(isinstance(task, str) for task in tasks)
        and network["arguments"]["num_tasks"] == len(tasks)
        and type(description.get("obs_dim")) is int
        and network["arguments"]["inputs"] == description["obs_dim"] > 0
        and description.get("squash") in get_args(Squash)
    ):
        raise UserError(
            f"'{folder / SPEC_NAME}' is damaged: expected tasks, obs_dim and a network with architecture and "
            "arguments that fit each other. Export the policy again."
        )
    if hashlib.sha256(content).hexdigest() != description.get("sha256"):
        raise UserError(
            f"'{folder / TENSORS_NAME}' was changed or belongs to another {SPEC_NAME}: its SHA-256 differs. "
            "Export the policy again."
        )
    return description, content


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
