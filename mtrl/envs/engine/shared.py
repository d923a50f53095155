"""The arrays that the learner and the worker processes share: anonymous memory, nothing left on any disk."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.tasks import ACTION_SIZE, OBS_SIZE

INFO_KEYS = (
    "success",
    "near_object",
    "grasp_success",
    "grasp_reward",
    "in_place_reward",
    "obj_to_target",
    "unscaled_reward",
)
"""Entries of upstream's info, the same in all tasks."""


class SharedArrays(NamedTuple):
    """One row per environment, N = T * E rows."""

    action: NDArray[np.float32]  # [N, 4], written by the learner
    obs: NDArray[np.float32]  # [N, 39], after a reset where the episode ended
    final_obs: NDArray[np.float32]  # [N, 39], valid where the episode ended
    reward: NDArray[np.float32]  # [N]
    info: NDArray[np.float32]  # [N, 7], in the order of INFO_KEYS
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    goal: NDArray[np.int64]  # [N], of the next episode, written by the learner
    stepping: NDArray[np.int64]  # [N], at a worker's first row: 1 + the row it steps, 0 between steps

    @classmethod
    def attach(cls, descriptor: int, num_envs: int) -> Self:
        """Map the memory behind a file descriptor from `allocate`, which may be closed then."""
        memory = mmap.mmap(descriptor, _size(num_envs))
        arrays: list[NDArray[Any]] = []
        start = 0
        for shape, dtype in _layout(num_envs):
            count = int(np.prod(shape))
            arrays.append(np.frombuffer(memory, dtype, count, start).reshape(shape))
            start += _padded(count * np.dtype(dtype).itemsize)
        return cls(*arrays)


def allocate(num_envs: int) -> int:
    """Return a descriptor of zeroed memory without a name, freed when the last process that maps it ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mtrl-envs")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _size(num_envs))
    return descriptor


def _layout(num_envs: int) -> list[tuple[tuple[int, ...], type]]:
    return [
        ((num_envs, ACTION_SIZE), np.float32),
        ((num_envs, OBS_SIZE), np.float32),
        ((num_envs, OBS_SIZE), np.float32),
        ((num_envs,), np.float32),
        ((num_envs, len(INFO_KEYS)), np.float32),
        ((num_envs,), np.bool_),
        ((num_envs,), np.bool_),
        ((num_envs,), np.int64),
        ((num_envs,), np.int64),
    ]


def _padded(size: int) -> int:
    return -(-size // 64) * 64


def _size(num_envs: int) -> int:
    return sum(_padded(int(np.prod(shape)) * np.dtype(dtype).itemsize) for shape, dtype in _layout(num_envs))
