"""Where a problem is solved: by NumPy on a CPU, by one kernel on a CUDA device.

A solve makes hundreds of operations on a few numbers. NumPy takes a quarter of torch's time for each, and
stops as soon as the solution is reached. On a CUDA device as many launches would take many times as long as
the rest of an update, so each problem is one Triton kernel there (see `kernels`). The operator `mtrl::solve`
stands for either: torch.compile, CUDA graphs, the meta device and FakeTensorMode see one call of known shape.

Problems of more than MOST_TASKS tasks, and those without a kernel, are solved by the host for a CUDA device
too. Where an update is a CUDA graph, such a solve divides it into two graphs (`handed_to`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mtrl.combiners.solvers.operations import Array

MOST_TASKS = 62  # of a kernel whose registers hold the problem and two more rows


class Problem(NamedTuple):
    """A problem that methods solve."""

    host: Callable[..., Any]  # from a symmetric Gramian, vectors and numbers to an array, float64
    shape: Callable[[int], tuple[int, ...]]  # of the result, for T tasks
    most_tasks: int  # of its kernel; 0: there is none


PROBLEMS: dict[str, Problem] = {}


def problem(
    name: str, shape: Callable[[int], tuple[int, ...]], most_tasks: int = 0
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as the solver on the host of the problem `name`; see `Problem`."""

    def register(host: Callable[..., Any]) -> Callable[..., Any]:
        PROBLEMS[name] = Problem(host, shape, most_tasks)
        return host

    return register


def portable(
    name: str, shape: Callable[[int], tuple[int, ...]] = lambda tasks: (tasks,), most_tasks: int = MOST_TASKS
) -> Callable[[Callable[..., Any]], Any]:
    """Register a solver written in `operations` for the problem `name`, on the host and on devices."""

    def register(solver: Callable[..., Any]) -> Callable[..., Any]:
        problem(name, shape, most_tasks)(partial(by_numpy, solver))
        return solver

    return register


def by_numpy(solver: Callable[..., Any], gram: Array, *given: Any) -> Array:
    """Return what a solver written in `operations` makes of a Gramian [T, T], vectors [T] and numbers."""
    vectors = [padded(one) for one in given if isinstance(one, np.ndarray)]
    found = solver(padded(gram), *vectors, len(gram), *given[len(vectors) :])
    return np.stack(found) if isinstance(found, tuple) else found


def padded(values: Array) -> Array:
    """Return a vector or matrix with room for three more tasks, which have zero gradients."""
    larger = np.zeros([size + 3 for size in values.shape])
    larger[tuple(slice(size) for size in values.shape)] = values
    return larger


def in_one_launch(name: str, tasks: int) -> bool:
    """Whether a CUDA device solves a problem of so many tasks by itself; the host does otherwise.

    Builds of torch for CUDA bring Triton along, except on Windows.
    """
    known = torch.version.cuda is None or find_spec("triton") is not None
    return tasks <= PROBLEMS[name].most_tasks and known


def has_kernels(tensor: Tensor) -> bool:
    """Whether Triton's kernels run where a tensor is."""
    return tensor.is_cuda and find_spec("triton") is not None


_takers: list[Callable[[Callable[[], None]], None]] = []  # of the capture under way, if there is one


@contextmanager
def handed_to(take: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Pass functions that need the host to `take`, which calls them in each replay, between two graphs."""
    _takers.append(take)
    try:
        yield
    finally:
        _takers.pop()


def by_host(made: Callable[[], Tensor], result: Tensor) -> Tensor:
    """Return `result` with the values of `made()`, which reads from the device or otherwise needs the host.

    While a CUDA graph is captured, `made` is not called: each replay calls it between two graphs, where it
    finds the tensors that it refers to with the values of that replay.
    """

    def write() -> None:
        result.copy_(made())

    if _takers:
        _takers[-1](write)
    else:
        write()
    return result


def solve(name: str, gram: Tensor, vectors: Sequence[Tensor] = (), numbers: Sequence[float] = ()) -> Tensor:
    """Return the solution of a problem for a Gramian [T, T], float64, on the Gramian's device.

    Args:
        name: A key of `PROBLEMS`.
        gram: Of any dtype; its entries [i, j] and [j, i] may be rounded apart.
        vectors: Further inputs, float64.
        numbers: Constants of the method, at other values of which a kernel is compiled anew.
    """
    gram, vectors = gram.detach(), [vector.detach() for vector in vectors]
    if _takers and not in_one_launch(name, len(gram)):
        result = gram.new_empty(PROBLEMS[name].shape(len(gram)), dtype=torch.float64)
        return by_host(lambda: _on_host(name, gram, vectors, numbers), result)
    if has_numbers(gram):
        return _on_host(name, gram, vectors, numbers)
    solved: Tensor = _solve(name, gram, vectors, list(numbers))
    return solved


def symmetric(gram: Any) -> Any:
    """Return a Gramian [T, T] whose entries [i, j] and [j, i] are the same.

    Some CPUs' kernels round the two entries of J J' apart. Where gradients nearly depend on each other, that
    is enough to change the solution.
    """
    return (gram + gram.T) / 2.0


def has_numbers(gram: Tensor) -> bool:
    """Whether this is a CPU tensor of an eager call. It needs no operator, whose call would take longer."""
    return gram.device.type == "cpu" and not torch.compiler.is_compiling() and type(gram) is Tensor


def _on_host(name: str, gram: Tensor, vectors: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    exact = symmetric(gram.to("cpu", torch.float64).numpy())
    with np.errstate(all="ignore"):  # numbers that are not finite pass, as on a device
        found = PROBLEMS[name].host(exact, *(vector.cpu().numpy() for vector in vectors), *numbers)
    found = found[..., : PROBLEMS[name].shape(len(exact))[-1]]
    return torch.from_numpy(found).to(gram.device)


@torch.library.custom_op("mtrl::solve", mutates_args=())
def _solve(name: str, gram: Tensor, vectors: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    if not gram.is_cuda or not in_one_launch(name, len(gram)):
        return _on_host(name, gram, vectors, numbers)
    from mtrl.combiners.solvers import kernels

    result = gram.new_empty(PROBLEMS[name].shape(len(gram)), dtype=torch.float64)
    with torch.cuda.device_of(gram):  # Triton launches on the current device
        kernels.launch(name, gram.contiguous(), [one.contiguous() for one in vectors], numbers, result)
    return result


@_solve.register_fake
def _(name: str, gram: Tensor, vectors: Sequence[Tensor], numbers: Sequence[float]) -> Tensor:
    return gram.new_empty(PROBLEMS[name].shape(len(gram)), dtype=torch.float64)
