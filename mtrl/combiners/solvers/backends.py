"""Two solver backends: NumPy with early exit on the CPU, torch with fixed steps and no host sync elsewhere.

A solve makes hundreds of operations on a few numbers, and NumPy takes a quarter of torch's time for each. On
other devices, and where a solve is recorded, compiled or batched, the same formulas run on tensors. There
`select` replaces branches, so that nothing waits for the device and a CUDA graph can hold the solve.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

_on_tensors = False


@contextmanager
def on_tensors() -> Iterator[None]:
    """Use the torch backend on CPUs too, for tests and for callers that transform a solve."""
    global _on_tensors
    before, _on_tensors = _on_tensors, True
    try:
        yield
    finally:
        _on_tensors = before


def symmetric(gram: Any) -> Any:
    """Return a Gramian [T, T] whose entries [i, j] and [j, i] are the same.

    Some CPUs' kernels round the two entries of J J' apart. Where gradients nearly depend on each other, that
    is enough to change the solution.
    """
    return (gram + gram.T) / 2.0


class Backend:
    """NumPy on the host: indices are ints, branches are taken, loops stop early."""

    xp: Any = np

    def quiet(self) -> AbstractContextManager[Any]:
        """Return a context in which non-finite numbers raise no warnings."""
        return np.errstate(all="ignore")

    def known(self, flag: Any) -> bool:
        """Whether `flag` is true and may be acted upon."""
        return bool(flag)

    def steps(self, tasks: int) -> int:
        """Return how many corners a path may have; random problems with 25 tasks have up to 47."""
        return 10 * tasks + 50

    def repairs(self, tasks: int) -> int:
        """Return how often tasks with negative weights may leave the last set of a path."""
        return tasks + 1

    def select(self, flag: Any, yes: Any, no: Any) -> Any:
        """Return `yes` or `no` by one flag."""
        return yes if flag else no

    def larger(self, first: Any, second: Any) -> Any:
        """Return the larger of two numbers, the first if they cannot be compared."""
        return self.select(second > first, second, first)

    def smaller(self, first: Any, second: Any) -> Any:
        """Return the smaller of two numbers, the first if they cannot be compared."""
        return self.select(second < first, second, first)

    def lowest(self, values: Any) -> Any:
        """Return the index of the smallest of `values` [T]."""
        return int(values.argmin())

    def index(self, value: int, like: Any) -> Any:
        """Return a given index."""
        return value

    def at(self, array: Any, index: Any) -> Any:
        """Return entry `index` of a vector or row `index` of a matrix."""
        return array[index]

    def column(self, matrix: Any, index: Any) -> Any:
        """Return a copy of a column."""
        return matrix[:, index].copy()

    def put(self, array: Any, index: Any, value: Any) -> Any:
        """Return `array` with `value` in place of `at(array, index)`; the old one is overwritten."""
        array[index] = value
        return array

    def blank_column(self, matrix: Any, index: Any) -> Any:
        """Return `matrix` with zeros in a column; the old one is overwritten."""
        matrix[:, index] = 0.0
        return matrix

    def unit(self, like: Any) -> Any:
        """Return the unit matrix of the size of `like`."""
        return np.eye(len(like))

    def with_diagonal(self, matrix: Any, values: Any) -> Any:
        """Return a contiguous `matrix` with another diagonal; the old one is overwritten."""
        matrix.reshape(-1)[:: len(matrix) + 1] = values
        return matrix

    def solve(self, matrix: Any, right: Any) -> Any:
        """Return `matrix^-1 right`; nan where there is none."""
        try:
            return np.linalg.solve(matrix, right)
        except np.linalg.LinAlgError:
            return right * np.nan

    def ready(self, tensor: Tensor) -> Any:
        """Return a tensor as an array of this backend, float64."""
        return tensor.detach().to(torch.float64).numpy()

    def gramian(self, tensor: Tensor) -> Any:
        """Return a Gramian [T, T] as an array of this backend, `symmetric`."""
        return symmetric(self.ready(tensor))

    def tensor(self, array: Any) -> Tensor:
        """Return an array of this backend as a tensor."""
        return torch.from_numpy(np.asarray(array))


class _TorchBackend(Backend):
    """Tensors: an index is a tensor [1], both sides of a branch are computed, loops never stop early."""

    xp: Any = torch

    def quiet(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def known(self, flag: Any) -> bool:
        return False

    def steps(self, tasks: int) -> int:
        return 2 * tasks + 8

    def repairs(self, tasks: int) -> int:
        return 2

    def select(self, flag: Any, yes: Any, no: Any) -> Any:
        return torch.where(flag, yes, no)

    def lowest(self, values: Any) -> Any:
        return values.argmin(0, keepdim=True)

    def index(self, value: int, like: Any) -> Any:
        return torch.full((1,), value, dtype=torch.int64, device=like.device)

    def at(self, array: Any, index: Any) -> Any:
        return array.index_select(0, index).squeeze(0)

    def column(self, matrix: Any, index: Any) -> Any:
        return matrix.index_select(1, index).squeeze(1)

    def put(self, array: Any, index: Any, value: Any) -> Any:
        return array.index_copy(0, index, value.unsqueeze(0))

    def blank_column(self, matrix: Any, index: Any) -> Any:
        return matrix.index_fill(1, index, 0.0)

    def unit(self, like: Any) -> Any:
        return torch.eye(len(like), dtype=like.dtype, device=like.device)

    def with_diagonal(self, matrix: Any, values: Any) -> Any:
        return matrix.diagonal_scatter(values)

    def solve(self, matrix: Any, right: Any) -> Any:
        factor = torch.linalg.cholesky_ex(matrix, check_errors=False)[0]
        return torch.cholesky_solve(right, factor)

    def ready(self, tensor: Tensor) -> Any:
        return tensor.detach().to(torch.float64)

    def tensor(self, array: Any) -> Tensor:
        result: Tensor = array
        return result


_HOST, _TENSORS = Backend(), _TorchBackend()


def backend_of(tensor: Tensor) -> Backend:
    """Return the backend that solves for this tensor."""
    if tensor.device.type != "cpu" or _on_tensors or torch.compiler.is_compiling():
        return _TENSORS
    if type(tensor.detach()) is not Tensor:  # one without numbers, of FakeTensorMode
        return _TENSORS
    try:
        tensor.data_ptr()
    except RuntimeError:  # how the tensors of torch.vmap refuse
        return _TENSORS
    return _HOST


def converged(measure: Tensor, bound: float) -> bool:
    """Whether steps may stop because a 0-dim measure is below a bound; torch never stops early."""
    return backend_of(measure).known(measure < bound)
