"""Process-wide settings for training: threads, matmul precision, determinism, memory allocator."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.deterministic

from mtrl.device.resources import available_cores
from mtrl.errors import UserError

_DETERMINISM: Any = torch.utils.deterministic  # its only attribute is not annotated
# Most that glibc documents for its mmap threshold; older versions refuse more.
_MMAP_LIMIT = 32 << 20
# glibc's malloc.h: parameter -> value while training, value afterwards, environment variable of the user.
# Setting one switches glibc's dynamic thresholds off, so afterwards they get the largest values that rule
# reaches.
_MALLOC = {
    -3: (1 << 30, _MMAP_LIMIT, "MALLOC_MMAP_THRESHOLD_"),
    -1: ((1 << 31) - 1, 2 * _MMAP_LIMIT, "MALLOC_TRIM_THRESHOLD_"),
    -2: (64 << 20, 128 << 10, "MALLOC_TOP_PAD_"),
}


@contextlib.contextmanager
def process_settings(
    num_threads: int | None, matmul_precision: str, device: torch.device, *, deterministic: bool = False
) -> Iterator[None]:
    """Set the learner's threads and float32 matmul precision for the block, then restore the former ones.

    Args:
        num_threads: None: as many as torch would use (OMP_NUM_THREADS and `torch.set_num_threads` limit
            them), at most `available_cores`.
        matmul_precision: as `precision_on` takes it.
        device: of the learner.
        deterministic: use only kernels that give the same bits each time. cuBLAS reads its setting,
            CUBLAS_WORKSPACE_CONFIG, when a process first uses it; setting it later has no effect.

    Raises:
        UserError: the program uses torch's other interface to the precision, which torch does not let us mix.
    """
    threads = torch.get_num_threads()
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError as error:  # torch refuses to mix its two interfaces
        raise UserError(
            "this program has set torch.backends...fp32_precision, and training sets the precision of matrix "
            'products itself (train.matmul_precision). Set it back to "none" first, or call '
            "torch.set_float32_matmul_precision instead."
        ) from error
    torch.set_num_threads(num_threads or min(threads, available_cores()))
    torch.set_float32_matmul_precision(precision_on(device, matmul_precision))
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filling = _DETERMINISM.fill_uninitialized_memory
    if deterministic:
        # Otherwise every `empty` is filled as well, which costs a launch each and changes no result here.
        _DETERMINISM.fill_uninitialized_memory = False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    _keep_freed_memory(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warn_only)
        _DETERMINISM.fill_uninitialized_memory = filling
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        _keep_freed_memory(False)


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Compute on one thread of a CPU for the block; on other devices change nothing.

    Work of less than a millisecond gains nothing from a second thread, which waits for a core that the
    environments keep busy: on two cores, 200 actions took 14 ms with two threads and 0.4 ms with one.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def precision_on(device: torch.device, setting: str) -> str:
    """Return what `torch.set_float32_matmul_precision` takes for a setting, which may be "auto".

    TF32 keeps 10 bits of the factors and is several times as fast on a GPU's matrix units. CPUs have no such
    units or lose more digits (bfloat16), so they stay exact.
    """
    if setting != "auto":
        return setting
    return "high" if device.type == "cuda" else "highest"


def _keep_freed_memory(keep: bool) -> None:
    """Let glibc reuse large blocks instead of returning them to the system, or end that as far as glibc can.

    Per-task updates allocate and free blocks of megabytes. Returning them cost 3,300 page faults and 6 ms of
    42 ms per update (MT10, 3x256 critics, batch 32, one core). Other C libraries stay unchanged. So do
    parameters that the user's variables set, because glibc does not reveal their values.
    """
    library = ctypes.CDLL(None)
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        return
    for parameter, (training, afterwards, variable) in _MALLOC.items():
        value = training if keep else afterwards
        if variable not in os.environ and not mallopt(parameter, value):
            mallopt(parameter, min(value, _MMAP_LIMIT))
    if not keep:
        trim(0)
