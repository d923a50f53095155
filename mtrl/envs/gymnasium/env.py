"""One Gymnasium environment as a TaskEnv of the engine, with exact saved states."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray

from mtrl.envs.state import NotPlainError, encode, restore_attributes, restore_physics, take_physics
from mtrl.envs.suite import StepOutcome
from mtrl.errors import UserError

_SUCCESS = ("success", "is_success")
# References between the layers, and attributes of the machine or the screen instead of the simulation.
_FOREIGN = {"env", "model", "data", "mujoco_renderer", "fullpath", "_ezpickle_args", "_ezpickle_kwargs"}
_FOREIGN |= {"_saved_kwargs", "spec", "_cached_spec", "render_mode", "metadata", "_metadata"}
# Arrays of MjData whose sizes depend on the current contacts. A step computes them before it reads them.
_VARIABLE = ("efc_", "iefc_", "island_", "contact", "dof_island", "tree_island", "map_")


class GymnasiumEnv:
    """A registered environment: actions in [-1, 1], resets by seed, success, exact state.

    Args:
        definition: as in GymnasiumSuite.
        max_episode_steps: env steps after which the engine truncates an episode.
        render_mode: Gymnasium's.
    """

    def __init__(
        self, definition: Mapping[str, Any], *, max_episode_steps: int, render_mode: str | None
    ) -> None:
        self._env = make(definition, render_mode=render_mode)
        sizes(self._env)
        limit = gymnasium.spec(definition["id"].rpartition(":")[2]).max_episode_steps
        if limit not in (None, max_episode_steps):
            warnings.warn(
                f"{definition['id']} is registered with {limit} steps per episode and runs with "
                f"env.max_episode_steps = {max_episode_steps} here.",
                RuntimeWarning,
                stacklevel=2,
            )
        space = self._env.action_space
        self._low = space.low.astype(np.float64)
        self._half_range = (space.high.astype(np.float64) - self._low) / 2
        self._action_dtype = space.dtype
        self._threshold: float | None = definition.get("success_return")
        self._horizon = max_episode_steps
        self._steps = 0
        self._return = 0.0
        self._state = _ExactState(self._env, definition["id"])

    def reset(self, goal: int) -> NDArray[Any]:
        """Begin the episode of seed `goal`; return the first observation [O]."""
        self._steps, self._return = 0, 0.0
        obs: NDArray[Any] = self._env.reset(seed=goal)[0]
        return obs

    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        """Advance by one env step with an action [A], which is clipped to [-1, 1]."""
        stretched = self._low + (np.clip(action, -1.0, 1.0).astype(np.float64) + 1.0) * self._half_range
        obs, reward, terminated, truncated, info = self._env.step(stretched.astype(self._action_dtype))
        self._steps += 1
        self._return += float(reward)
        ended = terminated or truncated or self._steps >= self._horizon
        return obs, float(reward), terminated, truncated, {"success": self._success(info, ended)}

    def _success(self, info: Mapping[str, Any], ended: bool) -> float:
        if self._threshold is not None:
            return float(ended and self._return >= self._threshold)
        return next((float(info[key]) for key in _SUCCESS if key in info), math.nan)

    def get_state(self) -> dict[str, Any]:
        """Return everything that later steps depend on.

        Raises:
            UserError: the environment holds something that cannot be saved.
        """
        return {"steps": self._steps, "return": self._return, "simulation": self._state.take()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self._steps, self._return = int(state["steps"]), float(state["return"])
        self._state.restore(state["simulation"])

    def render(self) -> Any:
        """Return a frame [H, W, 3] uint8."""
        return self._env.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()


def make(definition: Mapping[str, Any], *, render_mode: str | None) -> Any:
    """Return the registered environment of a definition, edited and without its time limit."""
    env: Any = gymnasium.make(
        definition["id"],
        max_episode_steps=-1,
        disable_env_checker=True,
        render_mode=render_mode,
        **definition.get("kwargs", {}),
    )
    for path, value in definition.get("set", {}).items():
        _edit(env.unwrapped, path, lambda _, value=value: value)
    for path, factor in definition.get("scale", {}).items():
        _edit(env.unwrapped, path, lambda old, factor=factor: old * np.asarray(factor))
    edits = [*definition.get("set", {}), *definition.get("scale", {})]
    if any(path.startswith("model.") for path in edits):
        import mujoco

        # Recomputes what the compiler derives from the edited numbers, such as the inertia of whole subtrees.
        mujoco.mj_setConst(env.unwrapped.model, mujoco.MjData(env.unwrapped.model))
    return env


def sizes(env: Any) -> tuple[int, int]:
    """Return the sizes of observation and action.

    Raises:
        UserError: one of them is not a vector, or the action has no bounds.
    """
    for what, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise UserError(f"its {what} must be a vector (Box of one dimension); found {space}")
    if not env.action_space.is_bounded():
        raise UserError(f"its actions must be bounded; found {env.action_space}")
    return env.observation_space.shape[0], env.action_space.shape[0]


def _edit(owner: Any, path: str, change: Any) -> None:
    """Replace the value of an attribute at a dotted path; arrays are written in place."""
    *parents, last = path.split(".")
    for name in parents:
        owner = getattr(owner, name)
    old = getattr(owner, last)  # a misspelt name raises here
    if isinstance(old, np.ndarray):
        old[...] = change(old)
        return
    value = change(old)
    setattr(owner, last, value.item() if isinstance(value, np.ndarray | np.generic) else value)


class _ExactState:
    """Takes and restores the state of an environment in mid-episode.

    The state holds all attributes of the environment and of its wrappers, and MuJoCo's simulation. An
    attribute that cannot be stored exactly is refused by name, because a run that resumes from another state
    without notice is worse than one that cannot be saved.

    Args:
        env: as `gymnasium.make` returned it, not yet reset.
        name: of the environment, for messages.
    """

    def __init__(self, env: Any, name: str) -> None:
        self._name = name
        self._layers = list(_layers(env))
        bare = self._layers[-1]
        kinds = [type(getattr(bare, name, None)).__module__ for name in ("model", "data")]
        has_mujoco = all(kind.startswith("mujoco") for kind in kinds)
        self._mujoco = (bare.model, bare.data) if has_mujoco else None
        self._model_code = _model_code(bare.model) if has_mujoco else 0

    def take(self) -> dict[str, Any]:
        """Return the state; UserError if an attribute cannot be saved."""
        layers = [self._attributes(layer) for layer in self._layers]
        return {"layers": layers, "physics": None if self._mujoco is None else self._physics(*self._mujoco)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state that `take` returned."""
        for layer, stored in zip(self._layers, state["layers"], strict=True):
            restore_attributes(layer, stored, _changing(layer))
        if self._mujoco is not None:
            restore_physics(*self._mujoco, state["physics"]["state"])
            for name, array in _data_arrays(self._mujoco[1]):
                if name in state["physics"]["derived"]:
                    array[...] = state["physics"]["derived"][name]

    def _attributes(self, layer: Any) -> dict[str, Any]:
        once = _Once()
        stored = {}
        for name in _changing(layer):
            try:
                stored[name] = encode(getattr(layer, name), once)
            except NotPlainError as error:
                raise UserError(
                    f"the environment {self._name} cannot be saved in mid-episode: "
                    f"{type(layer).__name__}.{name} {error}. Checkpoints need environments whose attributes "
                    "are numbers, strings, arrays, and lists or dicts of them."
                ) from error
        return stored

    def _physics(self, model: Any, data: Any) -> dict[str, Any]:
        if _model_code(model) != self._model_code:
            raise UserError(
                f"the environment {self._name} cannot be saved in mid-episode: it has edited its MuJoCo "
                "model since it was made. Edits that last, made by the definition of the task, are fine."
            )
        # Some environments read derived quantities of the last step, such as positions, before the next step.
        derived = {name: array.copy() for name, array in _data_arrays(data)}
        return {"state": take_physics(model, data), "derived": derived}


class _Once:
    """Refuses memory that two attributes of a layer share, because restored attributes would not share it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def __call__(self, value: Any) -> None:
        while isinstance(value, np.ndarray) and value.base is not None:
            if not isinstance(value.base, np.ndarray):
                raise NotPlainError("is a view of memory that belongs to the simulation")
            value = value.base
        if id(value) in self._seen:
            raise NotPlainError("shares memory with another attribute")
        self._seen.add(id(value))


def _layers(env: Any) -> Iterator[Any]:
    """The wrappers from the outside to the inside, and the bare environment."""
    while True:
        yield env
        if env is env.unwrapped:
            return
        env = env.env


def _changing(layer: Any) -> list[str]:
    """Return the names of the attributes that may change within or between episodes."""

    def constant(name: str, value: Any) -> bool:
        if isinstance(value, Space):
            return value._np_random is None  # drawing from a space changes it
        return name in _FOREIGN or isinstance(value, EnvSpec | type) or callable(value)

    return [name for name, value in vars(layer).items() if not constant(name, value)]


def _model_code(model: Any) -> int:
    import mujoco

    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return zlib.crc32(buffer.tobytes())


def _data_arrays(data: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    for name in dir(data):
        if name.startswith(("_", *_VARIABLE)):
            continue
        array = getattr(data, name)
        if isinstance(array, np.ndarray) and array.dtype != object and array.flags.writeable and array.size:
            yield name, array
