"""What an update launches, seen by a dispatch mode on the meta device, and the constants of the estimates."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mtrl.agents import AGENTS, actor_critic
from mtrl.agents.base import TaskSpec
from mtrl.agents.sac import noise_hold, replay, update
from mtrl.combiners import COMBINERS
from mtrl.combiners.solvers.backends import handed_to
from mtrl.config.presets import build_config, load_preset
from mtrl.device.cpu import precision_on
from mtrl.errors import UserError
from mtrl.gradients import descent

META = torch.device("meta")

# Estimates for an H100-class GPU, until they are measured: a graph node of a small kernel (1.3 to 2.5 us),
# and matrix products in single precision and in TF32.
MICROSECONDS_PER_NODE = 1.7
TERAFLOPS = {"highest": 35.0, "high": 150.0}

# Operations that launch nothing: views and allocations.
_FREE = {
    "alias", "as_strided", "chunk", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand",
    "lift_fresh", "movedim", "narrow", "new_empty", "new_empty_strided", "permute", "reshape", "select",
    "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze",
    "view", "_reshape_alias", "_unsafe_view", "is_same_size",
}  # fmt: skip
# Operations of several kernels; lower estimates. A functional scatter copies first.
_KERNELS = {
    "index_copy": 2, "index_fill": 2, "index_put": 2, "index_add": 2, "scatter": 2, "scatter_add": 2,
    "scatter_reduce": 2, "masked_fill": 2, "select_scatter": 2, "slice_scatter": 2, "diagonal_scatter": 2,
    "constant_pad_nd": 2, "eye": 2, "sort": 3, "argsort": 3, "native_layer_norm_backward": 2,
    "linalg_cholesky_ex": 6, "_cholesky_solve_helper": 6, "linalg_solve_triangular": 5,
    "_linalg_solve_ex": 10, "_linalg_eigh": 20,
}  # fmt: skip
# Operations whose result, or its shape, the host has to know.
_READS = {
    "_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2",
    "_linalg_eigh", "linalg_eigh", "_linalg_svd", "linalg_svd", "multinomial", "bincount", "allclose",
}  # fmt: skip


@dataclasses.dataclass
class Counts:
    """Kernels of an update; where updates do different things, of the largest, and means over all."""

    updates: int  # of the preset's whole run
    precision: str  # of matrix products
    nodes: int = 0
    mean_nodes: float = 0.0
    float64_nodes: int = 0
    flop: float = 0.0  # of matrix products, a mean
    host_reads: list[str] = dataclasses.field(default_factory=list)
    host_copies: list[str] = dataclasses.field(default_factory=list)


class _Counter(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        base = name if name.startswith("_foreach") else name.rstrip("_")
        given = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not any(tensor.is_meta for tensor in given + made):
            return result
        if base in _READS:
            self._counts.host_reads.append(name)
        # A 0-dim tensor of the host is an argument of the kernel; a longer one is copied.
        if any(not tensor.is_meta and tensor.dim() > 0 for tensor in given):
            self._counts.host_copies.append(name)
        if base in _FREE:
            return result
        in_place = name.endswith("_") and base in _KERNELS
        kernels = 1 if in_place else _KERNELS.get(base, 1)
        self._counts.nodes += kernels
        if any(tensor.dtype == torch.float64 for tensor in made):
            self._counts.float64_nodes += kernels
        if base in ("mm", "bmm"):
            self._counts.flop += 2.0 * given[0].numel() * given[1].shape[-1]
        elif base in ("addmm", "baddbmm"):
            self._counts.flop += 2.0 * given[1].numel() * given[2].shape[-1]
        return result


class _Reads:
    """Takes calls that the host makes between two graphs: a read, and a copy back."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def __call__(self, call: Callable[[], None]) -> None:
        self._counts.host_reads.append("by_host")


class _Stream:
    """Stands in for `RandomStream`: the meta device has no generator, and graphs draw no numbers."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = None


class _Adam:
    """Stands in for fused Adam, which the meta device lacks: a kernel for the count and one for the step."""

    def __init__(self, parameter: Tensor, *, lr: float, eps: float = 1e-8) -> None:
        self._parameter, self._step = parameter, torch.empty((), device=META)
        step_size = torch.empty((), device=META)
        self.param_groups = [{"lr": step_size, "params": [parameter]}]

    def step(self) -> None:
        assert self._parameter.grad is not None
        self._step.add_(1.0)
        self._parameter.detach().add_(self._parameter.grad)


@contextmanager
def _stand_ins() -> Iterator[None]:
    with ExitStack() as stack:
        for module in (descent, update):
            stack.enter_context(mock.patch.object(module, "make_adam", _Adam))
        for module in (actor_critic, replay, noise_hold):
            stack.enter_context(mock.patch.object(module, "RandomStream", _Stream))
        yield


def count(preset: str, method: str, tasks: int) -> Counts:
    """Count an update of all networks with a preset's settings, for `tasks` tasks of Meta-World's sizes."""
    options: dict[str, Any] = {}
    if "shift" in inspect.signature(COMBINERS[method]).parameters:
        options["shift"] = "minimum"
    if method == "torchjd":
        options["aggregator"] = "UPGrad"
    own = {"method": method, "method_options": options, "tasks": ("MT10",)}
    small = {"replay": {"capacity_per_task": 10_000}}  # its size changes no operation
    config = build_config(load_preset(preset), own, small)
    if config.agent != "sac":
        raise UserError(f"only SAC's updates can be counted; preset '{preset}' uses {config.agent}.")
    train, actor_every = config.train, config.sac.actor_every
    updates = (config.steps - train.warmup_steps) * train.updates_per_step + train.warmup_updates
    spec = TaskSpec(tuple(f"task {number}" for number in range(tasks)), config.env.envs_per_task, 39, 4)
    precision = precision_on(torch.device("cuda"), config.train.matmul_precision)
    with _stand_ins():
        agent: Any = AGENTS[config.agent](config, spec, META)
        agent.replay.size = agent.replay.capacity
        combiners = agent.update.critic.combiner, agent.update.actor.combiner
        counters = [counter for combiner in combiners for counter in combiner.counters()]
        for _ in range(2):  # the first time round makes what stays: constants, Jacobians
            cycle: list[Counts] = []
            while not cycle or len(cycle) % actor_every or any(counter.counter for counter in counters):
                actor_too = len(cycle) % actor_every == 0
                cycle.append(Counts(updates, precision))
                with handed_to(_Reads(cycle[-1])), _Counter(cycle[-1]):
                    agent._update_once(actor_too)
    largest = max(cycle, key=lambda counts: counts.nodes)
    largest.mean_nodes = sum(counts.nodes for counts in cycle) / len(cycle)
    largest.flop = sum(counts.flop for counts in cycle) / len(cycle)
    return largest


def estimated_ms(counts: Counts) -> float:
    """Milliseconds of an update that is one graph: launches and matrix products one after another."""
    products = counts.flop / (TERAFLOPS[counts.precision] * 1e9)
    return MICROSECONDS_PER_NODE * counts.mean_nodes / 1e3 + products
