"""Goal sets on disk: one small file per (metaworld version, benchmark, seed, task).

Upstream generates them by simulating resets, which takes seconds for MT10 and half a minute for MT50.
"""

from __future__ import annotations

import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.tasks import BENCHMARKS, goal_source

GOALS_PER_TASK = 50
"""Goals per task in every upstream benchmark."""

GoalSets = dict[str, NDArray[np.float64]]
Generate = Callable[[Sequence[str], int], Mapping[str, NDArray[np.float64]]]


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/mtrl/goals`, by default `~/.cache/mtrl/goals`.

    Where there is no home (no HOME and no entry of the user, as in some containers), a folder of this user's
    own among the temporary files, with a warning.
    """
    # The XDG specification tells to ignore relative values.
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "mtrl" / "goals"
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        return Path(home) / ".cache" / "mtrl" / "goals"
    folder = Path(tempfile.gettempdir()) / f"mtrl-{os.getuid()}" / "goals"
    warnings.warn(
        f"no home folder: goals are cached in {folder}. Set HOME or XDG_CACHE_HOME to keep them.",
        RuntimeWarning,
        stacklevel=2,
    )
    return folder


def goal_sets(tasks: Sequence[str], seed: int, version: str, generate: Generate) -> GoalSets:
    """Return the goal vectors [50, D] of each task, from the cache where it has them.

    `generate(names, seed)` produces those of a benchmark's first tasks, as upstream does; it is called only
    for benchmarks with goals missing. A cache that cannot be read or written costs time, with a warning.
    """
    source = goal_source(tasks)
    found: GoalSets = {}
    cache = cache_folder()
    for benchmark in sorted(set(source.values())):
        wanted = [name for name in tasks if source[name] == benchmark]
        folder = cache / version / benchmark / f"seed{seed}"
        cached = {name: _read(folder / f"{name}.npz") for name in wanted}
        if all(goals is not None for goals in cached.values()):
            found.update({name: goals for name, goals in cached.items() if goals is not None})
            continue
        order = BENCHMARKS[benchmark]
        last = max(order.index(name) for name in wanted)
        fresh = generate(order[: last + 1], seed)
        _write_all(folder, fresh)
        found.update({name: fresh[name] for name in wanted})
    return {name: found[name] for name in tasks}


def _read(path: Path) -> NDArray[np.float64] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            goals: NDArray[np.float64] = archive["rand_vec"]
        if goals.dtype != np.float64 or goals.ndim != 2 or len(goals) != GOALS_PER_TASK:
            raise ValueError(f"{goals.dtype} array of shape {goals.shape}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(
            f"goal cache {path} is unusable ({error}); generating it again.", RuntimeWarning, stacklevel=2
        )
        return None
    return goals


def _write_all(folder: Path, goals: Mapping[str, NDArray[np.float64]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, vectors in goals.items():
            _write(folder / f"{name}.npz", vectors)
    except OSError as error:
        warnings.warn(
            f"goal cache {folder} cannot be written ({error}); goals are generated again at the next start. "
            "Set XDG_CACHE_HOME to a writable folder.",
            RuntimeWarning,
            stacklevel=2,
        )


def _write(path: Path, vectors: NDArray[np.float64]) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=".npz", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, rand_vec=vectors)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
