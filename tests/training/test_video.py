"""Videos: one file per task, captioned; or a clear message where nothing can render or write them."""

from __future__ import annotations

from collections.abc import Callable
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import mtrl.training.video
from mtrl.envs import build_suite
from mtrl.envs.metaworld.suite import MetaWorldSuite
from mtrl.envs.suite import TaskSuite
from mtrl.errors import UserError
from mtrl.training.video import record
from tests.envs.metaworld.test_snapshot import some_goals
from tests.helpers.counting_env import RAISE, SUCCEED, CountingSuite

TASKS = ["reach-v3", "drawer-close-v3"]
needs_ffmpeg = pytest.mark.skipif(find_spec("imageio_ffmpeg") is None, reason="needs imageio-ffmpeg")
leaky = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's pipes


class Envs(NamedTuple):
    """What `record` asks of the policy's environments."""

    suite: TaskSuite
    goal_sets: dict[str, NDArray[np.float64]]
    envs_per_task: int = 2
    num_envs: int = 4
    max_episode_steps: int = 12

    @property
    def obs_dim(self) -> int:
        return self.suite.obs_dim

    @property
    def task_names(self) -> tuple[str, ...]:
        return self.suite.task_names


def film(folder: Path, policy: Callable[[Any], Any] | None = None, **options: Any) -> list[Path]:
    """Film two tasks of Meta-World."""
    envs: Any = Envs(MetaWorldSuite(TASKS), some_goals(TASKS, 0))
    return record(policy or still, envs, MetaWorldSuite, folder, seed=0, **options)


def still(obs: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.zeros((len(obs), 4), np.float32)


def frames_of(file: Path) -> NDArray[np.uint8]:
    import imageio.v2 as imageio

    reader: Any = imageio.get_reader(file)
    with reader:
        frames = [np.asarray(frame) for frame in reader.iter_data()]
    return np.stack(frames)


def film_counts(folder: Path, special_at: int | None = None) -> NDArray[np.uint8]:
    """Film one task of the counting suite over 12 steps; in one of them it succeeds."""
    suite = CountingSuite(["task-200"])
    envs: Any = Envs(suite, suite.draw_goals(0), envs_per_task=1, num_envs=1)

    def policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        action = still(obs)
        action[0, 3] = SUCCEED if obs[0, 0] == special_at else 0.0
        return action

    (file,) = record(policy, envs, CountingSuite, folder, seed=0)
    return frames_of(file)


@needs_ffmpeg
@leaky
def test_frames_are_whole_and_the_caption_below_them_tells_step_and_success(tmp_path: Path) -> None:
    solved, unsolved = film_counts(tmp_path / "solved", 5), film_counts(tmp_path / "unsolved")
    assert solved.shape == unsolved.shape == (3, 64, 16, 3)  # of steps 0, 4 and 8; 2 x 3 fill one block
    assert abs(float(solved[:, :2, :3].mean()) - 200) < 30
    captions, others = solved[:, 16:].astype(float), unsolved[:, 16:].astype(float)
    assert (captions.max(axis=(1, 2, 3)) > 200).all()  # white on black
    assert np.abs(captions[0] - others[0]).max() < 30
    assert np.array_equal(solved[:2, 16:40], unsolved[:2, 16:40])


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtrl.training.video, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mtrl-torch\[video\]"):
        film(tmp_path)


def test_a_camera_that_the_suite_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtrl.training.video, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"unknown camera 'topveiw'. Did you mean 'topview'\?"):
        film(tmp_path, camera="topveiw")
    pendulum: Any = Envs(build_suite("gymnasium", ["Pendulum-v1"]), {})
    with pytest.raises(UserError, match="GymnasiumSuite has one view only; found camera 'side'"):
        record(still, pendulum, CountingSuite, tmp_path, seed=0, camera="side")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.meta
@pytest.mark.skipif(find_library("OSMesa") is not None, reason="OSMesa would work here")
def test_a_renderer_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtrl.training.video, "find_spec", lambda name: name)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(UserError, match=r"'reach-v3' cannot be filmed: .+MUJOCO_GL=egl .*libegl1.*'osmesa'"):
        film(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("at_fault", "reason"),
    [("picture", "rendering failed: RuntimeError: the counting"), ("step", "(.|\n)*ZeroDivisionError")],
)
def test_what_else_prevents_a_film_is_said_without_advice_on_renderers(
    at_fault: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mtrl.training.video, "find_spec", lambda name: name)
    monkeypatch.setenv("COUNTING_ENV_BLIND", "1" if at_fault == "picture" else "")
    # As of Pendulum, whose suite can have MuJoCo's tasks as well.
    monkeypatch.setattr(CountingSuite, "versions", lambda suite: {"mujoco": "3.3.0"})
    suite = CountingSuite(["task-1"])
    envs: Any = Envs(suite, suite.draw_goals(0), envs_per_task=1, num_envs=1)
    with pytest.raises(UserError, match=f"task 'task-1' cannot be filmed: {reason}") as caught:
        record(lambda obs: np.full((1, 4), RAISE, np.float32), envs, CountingSuite, tmp_path, seed=0)
    assert "MUJOCO_GL" not in str(caught.value)


@pytest.mark.slow
@needs_ffmpeg
@leaky
@pytest.mark.skipif(find_library("EGL") is None, reason="needs EGL")
def test_each_task_is_filmed_from_its_own_row_of_the_policy_whatever_the_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":987")  # nobody's
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    rows: list[int] = []

    def policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        rows.extend(np.flatnonzero(obs.any(axis=1)).tolist())
        return still(obs)

    files = film(tmp_path / "side", policy)
    assert [file.name for file in files] == ["reach-v3.mp4", "drawer-close-v3.mp4"]
    assert rows == [0] * 12 + [2] * 12
    side, top = frames_of(files[1]), frames_of(film(tmp_path / "top", camera="topview")[1])
    assert side.shape == top.shape == (3, 528, 640, 3)
    # The drawer is green, nothing else of that size is.
    red, green, blue = (side[0, :480, :, channel].astype(int) for channel in range(3))
    assert ((green > red + 30) & (green > blue + 30)).mean() > 0.01
    assert np.abs(side.astype(int) - top).mean() > 10
