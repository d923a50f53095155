"""Videos of a policy: one episode per task, each rendered in a worker process of its own."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtrl.agents.base import Policy
from mtrl.config.files import paths_in
from mtrl.envs import TaskVectorEnv
from mtrl.envs.suite import TaskSuite
from mtrl.errors import EnvironmentFailure, UserError, unknown_name

Frame = NDArray[np.uint8]

_STEPS_PER_SECOND = 80  # upstream's real time: 5 physics steps of 2.5 ms each
_STEPS_PER_FRAME = 4  # software rendering takes a fifth of a second per frame
FRAMES_PER_SECOND = _STEPS_PER_SECOND / _STEPS_PER_FRAME
_GOAL = 0  # of the filmed episode
_BLOCK = 16  # of the codec, which would stretch pictures of other sizes
# What the errors of MuJoCo's renderers contain, such as "'NoneType' object has no attribute 'glGetError'".
_RENDERER = re.compile(r"(?i:mujoco|osmesa|egl|glfw|opengl)|\bgl[A-Z]")
CAPTION_HEIGHT = 48  # pixels, below each frame


def record(
    policy: Policy,
    envs: TaskVectorEnv,
    suite: Callable[[str], TaskSuite],
    folder: Path,
    *,
    seed: int,
    camera: str | None = None,
) -> list[Path]:
    """Write one episode of each task, started at goal 0, to `folder`; return the files.

    The caption below each frame gives task, goal, env step, and the step of success (no flag: the return).

    Args:
        policy: maps observations [T*E, O] of all tasks to actions [T*E, A].
        envs: the policy's environments; the videos have their tasks, goals and time limit.
        suite: returns the suite of one task alone.
        folder: made if missing.
        seed: of the environments.
        camera: one of the suite's; None: its first.

    Raises:
        UserError: as `check_filming`, or a task cannot be filmed, for instance because nothing here renders.
    """
    check_filming(envs.suite, camera)
    import imageio.v2 as imageio

    folder.mkdir(parents=True, exist_ok=True)
    files = paths_in(folder, envs.task_names, ".mp4")
    for task, name in enumerate(envs.task_names):
        scene = suite(name)
        if scene.obs_dim != envs.obs_dim:  # padded to the largest of all tasks
            scene.obs_dim = envs.obs_dim
        scene.camera = camera or next(iter(scene.cameras), None)
        frames = _film(policy, scene, envs, task * envs.envs_per_task, seed)
        imageio.mimwrite(files[name], [*frames], fps=FRAMES_PER_SECOND, macro_block_size=_BLOCK)
    return list(files.values())


def check_filming(suite: TaskSuite, camera: str | None) -> None:
    """Raise UserError, before a long evaluation, if a package is missing or the suite has no such camera."""
    if any(find_spec(package) is None for package in ("imageio", "imageio_ffmpeg", "PIL")):
        raise UserError("videos need imageio, imageio-ffmpeg and pillow: pip install 'mtrl-torch[video]'.")
    if camera is None:
        return
    if not suite.cameras:
        raise UserError(f"{type(suite).__name__} has one view only; found camera '{camera}'. Leave it out.")
    if camera not in suite.cameras:
        raise UserError(unknown_name("camera", camera, suite.cameras))


def _film(policy: Policy, suite: TaskSuite, envs: TaskVectorEnv, row: int, seed: int) -> list[Frame]:
    """Return the frames of one episode, rendered in a worker process of its own."""
    (name,) = suite.task_names
    film = None
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
    except (EnvironmentFailure, UserError) as error:
        reason = str(error).strip()
        begins = film is None or reason.startswith("rendering failed")
        if begins and _RENDERER.search(reason) and "mujoco" in suite.versions():
            last = reason.splitlines()[-1].removesuffix(".")
            reason = (
                f"{last}. Without a screen MuJoCo needs MUJOCO_GL=egl (packages libegl1 and, without a GPU, "
                "libgl1-mesa-dri) or MUJOCO_GL=osmesa (libosmesa6); found "
                f"MUJOCO_GL='{os.environ.get('MUJOCO_GL', '')}', DISPLAY='{os.environ.get('DISPLAY', '')}'."
            )
        raise UserError(f"task '{name}' cannot be filmed: {reason}") from error


def _frames(policy: Policy, film: TaskVectorEnv, row: int, rows: int) -> Iterator[Frame]:
    """Yield the frames of one episode; the policy gets its observation in `row` and zeros in the others.

    The last state of the episode is missing, because the environment has begun the next episode by then.
    """
    everyone = np.zeros((rows, film.obs_dim), np.float32)
    obs, _ = film.reset(options={"goal": np.array([_GOAL])})
    outcome = "not solved yet"
    total = 0.0
    for step in range(film.max_episode_steps):
        if step % _STEPS_PER_FRAME == 0:
            facts = f"{film.task_names[0]}, goal {_GOAL}", f"step {step}, {outcome}"
            yield _captioned(film.render()[0], facts)
        everyone[row] = obs[0]
        obs, reward, terminated, truncated, infos = film.step(policy(everyone)[row : row + 1])
        total += float(reward[0])
        if math.isnan(infos["success"][0]):
            outcome = f"return {total:.4g}"
        elif infos["success"][0] and outcome.startswith("not"):
            outcome = f"solved at step {step + 1}"
        if terminated[0] or truncated[0]:
            return


def _captioned(frame: Frame, facts: tuple[str, str]) -> Frame:
    """Return the frame [H, W, 3] with two lines of text below, padded to whole blocks."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = (-(-size // _BLOCK) * _BLOCK for size in frame.shape[:2])
    picture = Image.new("RGB", (width, height + CAPTION_HEIGHT))
    picture.paste(Image.fromarray(np.ascontiguousarray(frame)))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(16)
    for line, text in enumerate(facts):
        draw.text((8, height + 4 + 20 * line), text, font=font, fill="white")
    return np.asarray(picture)
