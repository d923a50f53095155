"""Process-wide settings for training: threads, matmul precision, determinism, memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import torch

from mtrl.device.resources import available_cores

# glibc's malloc.h: parameter -> while training, by default, the user's own variable.
_MALLOC = {
    -3: (1 << 30, 128 << 10, "MALLOC_MMAP_THRESHOLD_"),
    -1: ((1 << 31) - 1, 128 << 10, "MALLOC_TRIM_THRESHOLD_"),
    -2: (64 << 20, 128 << 10, "MALLOC_TOP_PAD_"),
}


@contextlib.contextmanager
def settings(
    num_threads: int | None, matmul_precision: str, *, deterministic: bool = False
) -> Iterator[None]:
    """Set the learner's threads and float32 matmul precision for the block, then put back what was there.

    Args:
        num_threads: None: what torch would use, which OMP_NUM_THREADS and `torch.set_num_threads` limit, but
            no more than `available_cores`.
        matmul_precision: as `torch.set_float32_matmul_precision` takes it.
        deterministic: only kernels that give the same bits each time. cuBLAS reads its part of the promise
            (CUBLAS_WORKSPACE_CONFIG) when a process first uses it: a process that has used CUDA before keeps
            what was set then.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(num_threads or min(threads, available_cores()))
    torch.set_float32_matmul_precision(matmul_precision)
    determined = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    _keep_freed_memory(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(determined)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        _keep_freed_memory(False)


def _keep_freed_memory(keep: bool) -> None:
    """Let glibc reuse large blocks instead of returning them to the system, or set its defaults again.

    Per-task updates take and free blocks of megabytes; handing them back cost 3,300 page faults and 6 ms of
    42 ms per update (MT10, 3x256 critics, batch 32, one core). Other C libraries are left as they are, and so
    is what the user's variables have set, because glibc does not tell it.
    """
    library = ctypes.CDLL(None)
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        return
    for parameter, (training, default, variable) in _MALLOC.items():
        if variable not in os.environ:
            mallopt(parameter, training if keep else default)
    if not keep:
        trim(0)
