"""A stand-in for CUDA graphs on a CPU: a capture records operations without effect, a replay repeats them.

As on a GPU, values that Python computed during the capture stay as they were, a read of the host fails, and
all tensors keep their memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mtrl.combiners.solvers import backends

_READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_linalg_eigh", "_unique2")


class Graph:
    """What one capture recorded."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        # Autograd was at work above the recorded operations.
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, made in self.calls:
                for old, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                    if _memory(old) != _memory(new):  # no view and not in place
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph, self.before = graph, dict[int, tuple[Tensor, Tensor]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name in _READS:
            raise RuntimeError(f"{name} is not permitted when the stream is capturing")
        if func._schema.is_mutable:
            for tensor in _tensors((args, kwargs)):
                flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self.before.setdefault(_memory(tensor), (flat, flat.clone()))
        result = func(*args, **(kwargs or {}))
        # Shapes as they are now: an operation in place may change them.
        made = [made.as_strided(made.shape, made.stride()) for made in _tensors(result)]
        self._graph.calls.append((func, args, kwargs or {}, made))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def _capture(graph: Graph, **_: Any) -> Iterator[None]:
    recorder = _Recorder(graph)
    with recorder:
        yield
    for flat, value in recorder.before.values():  # a capture changes nothing
        flat.copy_(value)


class _Stream:
    def __init__(self, device: Any = None) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass


def install(patch: pytest.MonkeyPatch) -> None:
    """Let `GraphedStep` of a CUDA device capture and replay operations of CPU tensors."""
    for name, fake in {
        "CUDAGraph": Graph, "graph": _capture, "graph_pool_handle": lambda: (0, 1), "Stream": _Stream,
        "stream": lambda other: nullcontext(), "device": lambda device: nullcontext(),
        "current_stream": lambda device=None: _Stream(), "set_stream": lambda stream: None,
        "synchronize": lambda device=None: None, "current_device": lambda: 0,
    }.items():  # fmt: skip
        patch.setattr(torch.cuda, name, fake)
    # Solves are one recorded operation, as on CUDA.
    patch.setattr(backends, "has_numbers", lambda gram: False)
