"""One Gymnasium environment as the engine wants it. Imports gymnasium, and with it the simulation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from mtrl.envs.gymnasium.state import EnvState
from mtrl.envs.suite import StepOutcome
from mtrl.errors import UserError

_SUCCESS = ("success", "is_success")


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
        self._state = EnvState(self._env, definition["id"])

    def reset(self, goal: int) -> NDArray[Any]:
        """Start the episode of seed `goal`."""
        self._steps, self._return = 0, 0.0
        obs: NDArray[Any] = self._env.reset(seed=goal)[0]
        return obs

    def step(self, action: NDArray[np.float32]) -> StepOutcome:
        """Advance by one env step with an action in [-1, 1], which values beyond are clipped to."""
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
        """Return everything the next numbers depend on.

        Raises:
            UserError: the environment holds something that cannot be saved.
        """
        return {"steps": self._steps, "return": self._return, "simulation": self._state.take()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore `get_state`."""
        self._steps, self._return = int(state["steps"]), float(state["return"])
        self._state.restore(state["simulation"])

    def render(self) -> Any:
        """Return a frame [H, W, 3] uint8."""
        return self._env.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()


def make(definition: Mapping[str, Any], *, render_mode: str | None) -> Any:
    """Return the registered environment of a definition without its time limit, its edits applied."""
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

        # What the compiler derives from the numbers just edited, such as the inertia of whole subtrees.
        mujoco.mj_setConst(env.unwrapped.model, mujoco.MjData(env.unwrapped.model))
    return env


def sizes(env: Any) -> tuple[int, int]:
    """Return the sizes of observation and action.

    Raises:
        UserError: one of them is no vector, or the action has no bounds.
    """
    for what, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise UserError(f"its {what} must be a vector (Box of one dimension); found {space}")
    if not env.action_space.is_bounded():
        raise UserError(f"its actions must be bounded; found {env.action_space}")
    return env.observation_space.shape[0], env.action_space.shape[0]


def _edit(owner: Any, path: str, change: Any) -> None:
    """Replace the value at a dotted path: arrays in place, other attributes as such."""
    *parents, last = path.split(".")
    for name in parents:
        owner = getattr(owner, name)
    old = getattr(owner, last)  # an attribute that is not there is a mistake in the name
    if isinstance(old, np.ndarray):
        old[...] = change(old)
        return
    value = change(old)
    setattr(owner, last, value.item() if isinstance(value, np.ndarray | np.generic) else value)
