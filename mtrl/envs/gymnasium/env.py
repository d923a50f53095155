"""One Gymnasium environment as a TaskEnv of the engine."""

import copy
import functools
import math
import random
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import FlattenObservation
from numpy.typing import NDArray

from mtrl.envs.gymnasium.state import ExactState, GlobalStreams, layers_of
from mtrl.envs.suite import StepOutcome
from mtrl.errors import UserError

_SUCCESS = ("success", "is_success")


class GymnasiumEnv:
    """A registered environment: actions in [-1, 1], resets by seed, success, exact state.

    Args:
        definition: as in GymnasiumSuite.
        max_episode_steps: env steps after which the engine truncates an episode.
        render_mode: Gymnasium's.
        flatten: whether observations are flattened by Gymnasium's wrapper.
        obs_dim: size to which observations are padded with zeros; None: their own.
    """

    def __init__(
        self,
        definition: Mapping[str, Any],
        *,
        max_episode_steps: int,
        render_mode: str | None,
        flatten: bool = False,
        obs_dim: int | None = None,
    ) -> None:
        # A constructor may draw from the global generators, so its numbers must not depend on other code.
        # NumPy's may be another environment's, so it is replaced before it is seeded.
        np.random.set_bit_generator(np.random.MT19937())  # type: ignore[attr-defined]
        np.random.seed(0)
        random.seed(0)
        self._env = make(definition, render_mode=render_mode, flatten=flatten)
        own_size, _ = sizes(self._env)
        self._padding = np.zeros(max(0, (obs_dim or 0) - own_size))
        limit = gymnasium.spec(definition["id"].rpartition(":")[2]).max_episode_steps
        if limit not in (None, max_episode_steps):
            warnings.warn(
                f"{definition['id']} is registered with {limit} steps per episode and runs with "
                f"env.max_episode_steps = {max_episode_steps} here.",
                RuntimeWarning,
                stacklevel=2,
            )
        space = self._env.action_space
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._half_range = (self._high - self._low) / 2
        self._action_dtype = space.dtype
        self._rounded = np.issubdtype(space.dtype, np.integer)
        self._threshold: float | None = definition.get("success_return")
        self._horizon = max_episode_steps
        self._steps = 0
        self._return = 0.0
        self._knows_success = False  # whether an info has had an entry for success
        self._streams = GlobalStreams(list(layers_of(self._env)))
        self._state = ExactState(self._env, definition["id"])

    def reset(self, goal: int) -> NDArray[Any]:
        """Begin the episode of seed `goal`; return the first observation [O]."""
        self._steps, self._return = 0, 0.0
        self._streams.seed(goal)
        obs = self._env.reset(seed=goal)[0]
        self._streams.leave()
        return self._padded(obs)

    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        """Advance by one env step with an action [A], which is clipped to [-1, 1]."""
        stretched = self._low + (np.clip(action, -1.0, 1.0).astype(np.float64) + 1.0) * self._half_range
        if self._rounded:
            stretched = np.rint(stretched)
        stretched = np.minimum(stretched, self._high)  # rounding may exceed the bound
        self._streams.enter()
        obs, reward, terminated, truncated, info = self._env.step(stretched.astype(self._action_dtype))
        self._streams.leave()
        reward = _number("reward", reward)
        self._steps += 1
        self._return += reward
        ended = terminated or truncated or self._steps >= self._horizon
        return self._padded(obs), reward, terminated, truncated, {"success": self._success(info, ended)}

    def _padded(self, obs: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate((obs, self._padding)) if self._padding.size else obs

    def _success(self, info: Mapping[str, Any], ended: bool) -> float:
        if self._threshold is not None:
            return float(ended and self._return >= self._threshold)
        for key in _SUCCESS:
            if key in info:
                self._knows_success = True
                return _number(f'info["{key}"]', info[key])
        # Some environments give the entry only at the end of an episode, or only where it is solved.
        return 0.0 if self._knows_success else math.nan

    def get_state(self) -> dict[str, Any]:
        """Return everything that later steps depend on.

        Raises:
            UserError: the environment holds something that cannot be saved.
        """
        return {
            "steps": self._steps,
            "return": self._return,
            "knows_success": self._knows_success,
            "streams": self._streams.take(),
            "simulation": self._state.take(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self._steps, self._return = int(state["steps"]), float(state["return"])
        self._knows_success = bool(state["knows_success"])
        self._streams.restore(state["streams"])
        self._state.restore(state["simulation"])

    def render(self) -> Any:
        """Return a frame [H, W, 3] uint8."""
        return self._env.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()


def make(definition: Mapping[str, Any], *, render_mode: str | None, flatten: bool = False) -> Any:
    """Return the registered environment of a definition, edited and without its time limit."""
    definition = copy.deepcopy(dict(definition))  # an environment may write into what it is given
    plain = functools.partial(
        gymnasium.make, definition["id"], max_episode_steps=-1, disable_env_checker=True
    )
    kwargs = definition.get("kwargs", {})
    try:
        env: Any = plain(render_mode=render_mode, **kwargs)
    except TypeError as error:
        if render_mode is not None or "unexpected keyword argument 'render_mode'" not in str(error):
            raise
        env = plain(**kwargs)  # an environment without views
    for path, value in definition.get("set", {}).items():
        _edit(env.unwrapped, path, lambda _, value=value: value)
    for path, factor in definition.get("scale", {}).items():
        _edit(env.unwrapped, path, lambda old, factor=factor: old * np.asarray(factor))
    edits = [*definition.get("set", {}), *definition.get("scale", {})]
    if any(path.startswith("model.") for path in edits):
        import mujoco

        # Recomputes what the compiler derives from the edited numbers, such as the inertia of whole subtrees.
        mujoco.mj_setConst(env.unwrapped.model, mujoco.MjData(env.unwrapped.model))
    return FlattenObservation(env) if flatten else env


def sizes(env: Any) -> tuple[int, int]:
    """Return the sizes of observation and action.

    Raises:
        UserError: one of them is not a vector, or the action has no bounds.
    """
    hints = (" Flatten it with --suite.flatten-observations (YAML: suite_options.flatten_observations).", "")
    spaces = ("observation", env.observation_space), ("action", env.action_space)
    for (what, space), hint in zip(spaces, hints, strict=True):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise UserError(f"its {what} must be a vector (Box of one dimension); found {space}.{hint}")
    if not env.action_space.is_bounded():
        raise UserError(f"its actions must be bounded; found {env.action_space}.")
    return env.observation_space.shape[0], env.action_space.shape[0]


def _number(what: str, value: Any) -> float:
    """Return a number, or the only entry of an array, as a float."""
    if type(value) is float:
        return value
    array = np.asarray(value)
    if array.size != 1:
        raise ValueError(f"{what} must be a number; found an array of shape {list(array.shape)}.")
    return float(array.item())


def _edit(owner: Any, path: str, change: Any) -> None:
    """Replace the value of an attribute at a dotted path, of this environment alone; arrays keep their type.

    Raises:
        UserError: an array of whole numbers would get others.
    """
    *parents, last = path.split(".")
    for name in parents:
        part = getattr(owner, name)
        if _is_of_class(owner, name, part):
            part = copy.deepcopy(part)
            setattr(owner, name, part)
        owner = part
    old = getattr(owner, last)  # a misspelt name raises here
    value = change(old)
    if not isinstance(old, np.ndarray):
        setattr(owner, last, value.item() if isinstance(value, np.ndarray | np.generic) else value)
        return
    new = old.copy()
    new[...] = value
    if new.dtype.kind in "biu" and (new != value).any():
        raise UserError(f"{path} has whole numbers ({new.dtype}) and cannot be {np.asarray(value).tolist()}.")
    if last in getattr(owner, "__dict__", ()) or _is_of_class(owner, last, old):
        setattr(owner, last, new)  # other environments may have the old array: it may be a constant
    else:
        old[...] = new  # memory of the simulation, such as that of a MuJoCo model


def _is_of_class(owner: Any, name: str, value: Any) -> bool:
    return any(vars(cls).get(name) is value for cls in type(owner).__mro__)
