"""The arrays that learner and workers share in anonymous memory, and the result of a step read from them."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
StepResult = tuple[Floats, Floats, Flags, Flags, dict[str, Any]]


class Sizes(NamedTuple):
    """Sizes that decide the shapes of the arrays."""

    num_envs: int  # N = T * E, one row each
    obs_dim: int  # O
    action_dim: int  # A
    num_info: int  # K entries of info


class SharedArrays(NamedTuple):
    """One row per environment."""

    action: NDArray[np.float32]  # [N, A], written by the learner
    obs: NDArray[np.float32]  # [N, O], after a reset where the episode ended
    final_obs: NDArray[np.float32]  # [N, O], valid where the episode ended
    reward: NDArray[np.float32]  # [N]
    info: NDArray[np.float32]  # [N, K], in the order of the suite's info_keys
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    goal: NDArray[np.int64]  # [N], of the next episode, written by the learner
    stepping: NDArray[np.int64]  # [N], at each worker's first row: 1 + the row it steps, 0 between steps

    @classmethod
    def attach(cls, descriptor: int, sizes: Sizes) -> Self:
        """Map the memory behind a descriptor from `allocate`; the descriptor may be closed afterwards."""
        memory = mmap.mmap(descriptor, _size(sizes))
        arrays: list[NDArray[Any]] = []
        start = 0
        for shape, dtype in _layout(sizes):
            count = int(np.prod(shape))
            arrays.append(np.frombuffer(memory, dtype, count, start).reshape(shape))
            start += _padded(count * np.dtype(dtype).itemsize)
        return cls(*arrays)


def collect(
    arrays: SharedArrays, info_keys: Sequence[str], before: Floats, unstepped: Flags, lost: Flags
) -> StepResult:
    """Return copies of observation, reward, terminated, truncated and infos.

    Args:
        arrays: after the workers have stepped.
        info_keys: names of the entries of `arrays.info`.
        before: the observations returned by the step before [N, O].
        unstepped: rows [N] of workers that failed in this step, whose flags are invalid.
        lost: `unstepped`, and rows whose observation before belonged to an episode that was lost.
    """
    obs, reward, info = arrays.obs.copy(), arrays.reward.copy(), arrays.info.T.copy()
    # A lost row is truncated, with its last observation in `final_obs`, reward 0 and info NaN. So callers
    # that ignore `restarted` neither bootstrap across episodes nor see invented numbers.
    terminated = arrays.terminated & ~lost
    truncated = (arrays.truncated & ~unstepped) | lost
    infos: dict[str, Any] = dict(zip(info_keys, info, strict=True))
    infos["restarted"] = lost
    ended = terminated | truncated
    if ended.any():
        final_obs = np.where(ended[:, None], arrays.final_obs, obs)
        if lost.any():
            reward[lost], info[:, lost] = 0.0, np.nan
            final_obs[lost] = before[lost]
        infos["final_obs"], infos["_final_obs"] = final_obs, ended  # a mask, as in Gymnasium
    return obs, reward, terminated, truncated, infos


def allocate(sizes: Sizes) -> int:
    """Return a descriptor of zeroed anonymous memory, freed when the last process that maps it ends."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("mtrl-envs")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _size(sizes))
    return descriptor


def _layout(sizes: Sizes) -> list[tuple[tuple[int, ...], type]]:
    rows = sizes.num_envs
    return [
        ((rows, sizes.action_dim), np.float32),
        ((rows, sizes.obs_dim), np.float32),
        ((rows, sizes.obs_dim), np.float32),
        ((rows,), np.float32),
        ((rows, sizes.num_info), np.float32),
        ((rows,), np.bool_),
        ((rows,), np.bool_),
        ((rows,), np.int64),
        ((rows,), np.int64),
    ]


def _padded(size: int) -> int:
    return -(-size // 64) * 64


def _size(sizes: Sizes) -> int:
    return sum(_padded(int(np.prod(shape)) * np.dtype(dtype).itemsize) for shape, dtype in _layout(sizes))
