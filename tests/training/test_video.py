"""Videos: one file per task, or a clear message where nothing can render or write them."""

from __future__ import annotations

from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import mtrl.training.video
from mtrl.envs.metaworld.suite import MetaWorldSuite
from mtrl.errors import UserError
from mtrl.training.video import record
from tests.envs.metaworld.test_snapshot import some_goals

TASKS = ["reach-v3", "drawer-close-v3"]


class Envs(NamedTuple):
    """What `record` asks of the policy's environments."""

    goal_sets: dict[str, NDArray[np.float64]]
    task_names: tuple[str, ...] = tuple(TASKS)
    envs_per_task: int = 2
    num_envs: int = 4
    max_episode_steps: int = 6


def film(folder: Path, rows_seen: list[int] | None = None) -> list[Path]:
    def policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        if rows_seen is not None:
            rows_seen.extend(np.flatnonzero(obs.any(axis=1)).tolist())
        return np.zeros((len(obs), 4), np.float32)

    return record(policy, Envs(some_goals(TASKS, 0)), MetaWorldSuite, folder, seed=0)  # type: ignore[arg-type]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtrl.training.video, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mtrl-torch\[video\]"):
        film(tmp_path)


@pytest.mark.skipif(find_library("OSMesa") is not None, reason="OSMesa would work here")
def test_a_renderer_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtrl.training.video, "find_spec", lambda name: name)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(UserError, match=r"libegl1.*MUJOCO_GL is 'osmesa' and rendering failed: .+"):
        film(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("imageio_ffmpeg") is None or find_library("EGL") is None, reason="needs imageio-ffmpeg and EGL"
)
def test_each_task_gets_a_file_and_its_own_row_of_the_policy(tmp_path: Path) -> None:
    rows: list[int] = []
    files = film(tmp_path / "videos", rows)
    assert [file.name for file in files] == ["reach-v3.mp4", "drawer-close-v3.mp4"]
    assert all(file.stat().st_size > 1000 for file in files)
    assert rows == [0] * 6 + [2] * 6
