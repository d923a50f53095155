"""Videos of a policy, one episode per task; rendered in one separate process, one environment at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrl.envs import TaskVectorEnv
from mtrl.envs.suite import TaskSuite
from mtrl.errors import EnvironmentFailure, UserError
from mtrl.training.evaluate import Policy

_STEPS_PER_SECOND = 80  # upstream's real time: 5 physics steps of 2.5 ms each
_STEPS_PER_FRAME = 4  # software rendering takes a fifth of a second per frame


def record(
    policy: Policy, envs: TaskVectorEnv, suite: Callable[[str], TaskSuite], folder: Path, *, seed: int
) -> list[Path]:
    """Write one episode of each task, started at goal 0, to `folder`; return the files.

    Args:
        policy: maps observations [T*E, O] of all tasks to actions [T*E, A].
        envs: the environments of the policy, whose tasks, goals and time limit are those of the films.
        suite: returns the suite of one task alone.
        folder: made if missing.
        seed: of the environments.

    Raises:
        UserError: imageio or its ffmpeg is missing, or nothing here can render without a screen.
    """
    if any(find_spec(package) is None for package in ("imageio", "imageio_ffmpeg")):
        raise UserError("videos need imageio and imageio-ffmpeg: pip install 'mtrl-torch[video]'.")
    import imageio.v2 as imageio

    if not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # the window library would look for a screen
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for task, name in enumerate(envs.task_names):
        frames = _film(policy, suite(name), envs, task * envs.envs_per_task, seed)
        files.append(folder / f"{name}.mp4")
        imageio.mimwrite(files[-1], [*frames], fps=_STEPS_PER_SECOND / _STEPS_PER_FRAME)
    return files


def _film(
    policy: Policy, suite: TaskSuite, envs: TaskVectorEnv, row: int, seed: int
) -> list[NDArray[np.uint8]]:
    """Return the frames of one episode, rendered in a worker of its own."""
    (name,) = suite.task_names
    try:
        film = TaskVectorEnv(
            suite,
            seed=seed,
            num_workers=1,
            max_episode_steps=envs.max_episode_steps,
            render_mode="rgb_array",
            max_restarts=0,
            goals={name: envs.goal_sets[name]},
        )
        with closing(film):
            return list(_frames(policy, film, row, envs.num_envs))
    except EnvironmentFailure as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            "videos need a renderer that works without a screen: EGL (package libegl1) or OSMesa "
            f"(libosmesa6, with MUJOCO_GL=osmesa); MUJOCO_GL is '{os.environ.get('MUJOCO_GL', '')}' and "
            f"rendering failed: {reason}"
        ) from error


def _frames(policy: Policy, film: TaskVectorEnv, row: int, rows: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of one episode; the policy sees the environment in its row, zeros in the others."""
    everyone = np.zeros((rows, film.obs_dim), np.float32)
    obs, _ = film.reset(options={"goal": np.zeros(1, np.int64)})
    ended, number = False, 0
    while not ended:
        if number % _STEPS_PER_FRAME == 0:
            yield film.render()[0]
        everyone[row] = obs[0]
        obs, _, terminated, truncated, _ = film.step(policy(everyone)[row : row + 1])
        ended = bool(terminated[0] or truncated[0])
        number += 1
