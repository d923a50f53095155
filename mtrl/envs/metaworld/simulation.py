"""One Meta-World task: upstream's environment, stepped directly. Only workers import this module."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mtrl.envs.metaworld import speedups
from mtrl.envs.metaworld.speedups import EDITED_MODEL_ARRAYS, lend_model, place_hand
from mtrl.envs.metaworld.tasks import GOALS_PER_TASK
from mtrl.envs.state import NotPlainError, encode, restore_attributes, restore_physics, take_physics
from mtrl.envs.suite import StepOutcome

_FREE = -1  # MuJoCo's id of a camera that belongs to no model
# From the right of the table, at an angle from which the arm hides neither the object nor the goal.
_SIDE = {"lookat": np.array([0.0, 0.65, 0.1]), "distance": 1.4, "azimuth": 155.0, "elevation": -35.0}
_NO_HORIZON = 2**62  # the engine limits episodes; upstream would refuse to step beyond its own limit
# Arrays of the simulation of which upstream's environments keep views.
_VIEWED = {
    "data": (
        *("qpos", "qvel", "mocap_pos", "mocap_quat", "xpos", "xquat", "xmat", "xipos", "ximat"),
        *("geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
    ),
    "model": EDITED_MODEL_ARRAYS,
}
# Paths and rendering belong to the machine, not to the simulation. With given goals upstream draws nothing.
_FOREIGN = {
    *("_ezpickle_args", "_ezpickle_kwargs", "fullpath", "_np_random"),
    *("render_mode", "camera_name", "camera_id", "width", "height"),
}


def make_env(
    task: str, goals: NDArray[np.float64], *, camera: str | None = None, **options: Any
) -> MetaWorldEnv:
    """Return MetaWorldEnv of these arguments, rendered from `camera`.

    Installs the exact speed-ups for the whole process, which is a worker's.
    """
    for note in speedups.install(SawyerXYZEnv):
        warnings.warn(note, RuntimeWarning, stacklevel=2)
    env = MetaWorldEnv(task, goals, **options)
    if camera is not None:
        env.look_from(camera)
    return env


class MetaWorldEnv:
    """One task of Meta-World with its goals [G, D], goal visible, without wrappers and time limit.

    Equal to upstream's environment after `set_task`; the wrappers of `gymnasium.make_vec` change no number.
    """

    def __init__(
        self,
        task: str,
        goals: NDArray[np.float64],
        *,
        reward_version: str = "v2",
        render_mode: str | None = None,
    ) -> None:
        self.env = ALL_V3_ENVIRONMENTS[task](reward_function_version=reward_version, render_mode=render_mode)
        self.env.max_path_length = _NO_HORIZON
        self._tasks = [_upstream_task(task, vector) for vector in goals]
        # Observation bounds depend on the goal being visible, so this comes before any step or `set_state`.
        self.env.set_task(self._tasks[0])
        self._upside_down = False

    def reset(self, goal: int) -> NDArray[np.float64]:
        """Begin an episode with the given goal of the set; return the first observation [39]."""
        self.env.set_task(self._tasks[goal])
        obs: NDArray[np.float64] = self.env.reset()[0]
        return obs

    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        """Advance by one env step; return what upstream returns, which never ends an episode itself."""
        outcome: StepOutcome = self.env.step(action)
        return outcome

    def get_state(self) -> dict[str, Any]:
        """Return everything that later steps depend on, as plain containers and arrays."""
        lend_model(self.env)
        model, data = self.env.model, self.env.data
        return {
            "physics": take_physics(model, data),
            "model": {name: np.array(getattr(model, name)) for name in EDITED_MODEL_ARRAYS},
            "site_xpos": np.array(data.site_xpos),
            "attributes": _attributes(self.env),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned, possibly in another process."""
        lend_model(self.env, editing=True)
        model, data = self.env.model, self.env.data
        for name, value in state["model"].items():
            getattr(model, name)[:] = value
        restore_physics(model, data, state["physics"])
        # Upstream writes target positions into this array directly, which the forward pass has undone.
        data.site_xpos[:] = state["site_xpos"]
        restore_attributes(self.env, state["attributes"], _attributes(self.env), partial(_view, self.env))

    def render(self) -> Any:
        """Return a frame [H, W, 3] uint8, or what the render mode returns."""
        lend_model(self.env)
        frame = self.env.render()
        return frame[::-1, ::-1] if self._upside_down else frame

    def look_from(self, camera: str) -> None:
        """Render 640 x 480 frames, the right way up, from one of the suite's cameras."""
        renderer = self.env.mujoco_renderer
        renderer.width, renderer.height = 640, 480  # the largest picture that upstream's models allow
        if camera == "side":
            renderer.camera_id, renderer.default_cam_config = _FREE, _SIDE
        else:
            renderer.camera_id = self.env.model.camera(camera).id
        self._upside_down = camera.startswith("corner")

    def close(self) -> None:
        """Free rendering contexts."""
        self.env.close()


def _attributes(env: Any) -> dict[str, Any]:
    """Return the attributes of upstream's environment that can be stored."""
    arrays = {
        (owner, field): getattr(getattr(env, owner), field)
        for owner, fields in _VIEWED.items()
        for field in fields
    }
    stored = {}
    for name, value in vars(env).items():
        # What cannot be stored, such as spaces and models, upstream builds once and never changes.
        if name not in _FOREIGN:
            with suppress(NotPlainError):
                stored[name] = encode(value, partial(_place, arrays))
    return stored


def _place(arrays: dict[tuple[str, str], NDArray[Any]], value: Any) -> dict[str, Any] | None:
    """Return where in the simulation's memory an array lies; None if it has memory of its own.

    Upstream keeps views of the simulation, such as `init_left_pad`, and its rewards read their later values.
    A copy would change the rewards.
    """
    if not isinstance(value, np.ndarray) or not value.size:
        return None
    address = value.__array_interface__["data"][0]
    for (owner, field), array in arrays.items():
        start = array.__array_interface__["data"][0]
        if start <= address < start + array.nbytes and value.dtype == array.dtype:
            return {
                "kind": "view",
                "owner": owner,
                "field": field,
                "offset": (address - start) // array.itemsize,
                "shape": list(value.shape),
                "strides": list(value.strides),
            }
    return None


def _view(env: Any, stored: dict[str, Any]) -> NDArray[Any]:
    owner, field = stored["owner"], stored["field"]
    shape, strides, offset = tuple(stored["shape"]), tuple(stored["strides"]), stored["offset"]
    valid = field in _VIEWED.get(owner, ()) and all(type(n) is int for n in (*shape, *strides, offset))
    if valid and len(shape) == len(strides) and min((*shape, offset), default=0) >= 0:
        flat = getattr(getattr(env, owner), field).reshape(-1)
        # as_strided checks nothing: a damaged or forged checkpoint would read and write foreign memory.
        reach = [stride * (n - 1) for n, stride in zip(shape, strides, strict=True)]
        first = offset * flat.itemsize + sum(min(step, 0) for step in reach)
        last = offset * flat.itemsize + sum(max(step, 0) for step in reach)
        if 0 not in shape and first >= 0 and last + flat.itemsize <= flat.nbytes:
            return as_strided(flat[offset:], shape, strides)
    raise ValueError(f"the stored view of {owner}.{field} with shape {shape} does not lie in that array")


def _upstream_task(name: str, vector: NDArray[np.float64]) -> Task:
    data = {"rand_vec": vector, "env_cls": ALL_V3_ENVIRONMENTS[name], "partially_observable": False}
    return Task(env_name=name, data=pickle.dumps(data))


def generate_goals(names: Sequence[str], seed: int) -> dict[str, NDArray[np.float64]]:
    """Return upstream's goal sets [50, D] of the first tasks of a benchmark, `names`.

    Follows `metaworld._make_tasks`: one legacy random stream over all tasks. The resets run without physics,
    because what they draw and reject depends on the drawn vectors only (tests compare all tasks). The global
    random state of the caller is restored.
    """
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        return {name: _draw_goals(name) for name in names}
    finally:
        np.random.set_state(before)


def _draw_goals(name: str) -> NDArray[np.float64]:
    env = ALL_V3_ENVIRONMENTS[name]()
    env._freeze_rand_vec = False
    env._set_task_called = True
    env._set_task_inner()
    env.do_simulation = lambda ctrl, n_frames: mujoco.mj_forward(env.model, env.data)
    env._reset_hand = lambda steps=50: place_hand(env)
    vectors = []
    for _ in range(GOALS_PER_TASK):
        env.reset()
        vectors.append(np.array(env._last_rand_vec, dtype=np.float64))
    env.close()
    goals = np.stack(vectors)
    if len(np.unique(goals, axis=0)) != GOALS_PER_TASK:
        raise RuntimeError(
            f"{name}: some of the goals drawn are equal, which upstream refuses as well; choose another seed."
        )
    return goals
