"""Environments as a VecEnv of Stable-Baselines3, whose `evaluate_policy` takes exported policies."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from mtrl.envs import TaskVectorEnv
from mtrl.errors import UserError


class SB3VecEnv(VecEnv):  # type: ignore[misc]  # the package is not followed by the type checker
    """A TaskVectorEnv as a VecEnv of Stable-Baselines3: row t * E + e is copy e of task t.

    `infos[row]` holds the suite's info entries of the step, `is_success` if success is known, and
    `terminal_observation` and `TimeLimit.truncated` if an episode ended. Make the environments with
    `max_restarts=0`: Stable-Baselines3 would store a false transition after the restart of a worker.

    Args:
        envs: not to be used otherwise; `close` closes them.
    """

    def __init__(self, envs: TaskVectorEnv) -> None:
        self.envs = envs
        self._seed: int | None = None
        self._goals: dict[str, Any] | None = None
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Restart every goal stream from this seed at the next `reset`."""
        self._seed = seed
        return [seed] * self.num_envs

    def set_options(self, options: Any = None) -> None:
        """Set the goals `options["goal"]`, int [T*E], at the next `reset`."""
        self._goals = options

    def reset(self) -> NDArray[np.float32]:
        """Start new episodes everywhere; return observations [T*E, O]."""
        obs, _ = self.envs.reset(seed=self._seed, options=self._goals)
        self._seed = self._goals = None
        self._note_goals()
        return obs

    def _note_goals(self) -> None:
        self.reset_infos = [{"goal": int(goal)} for goal in self.envs.goals]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Start stepping with actions [T*E, A]."""
        self.envs.step_async(actions)

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Return observations, rewards, ends of episodes and infos of the step that has begun."""
        obs, reward, terminated, truncated, arrays = self.envs.step_wait()
        done = terminated | truncated
        if done.any():
            self._note_goals()
        entries = {name: arrays[name] for name in (*self.envs.suite.info_keys, "restarted")}
        infos: list[dict[str, Any]] = [
            {name: values[row].item() for name, values in entries.items()} for row in range(self.num_envs)
        ]
        for row, info in enumerate(infos):
            if not np.isnan(info["success"]):
                info["is_success"] = info["success"] > 0
            if done[row]:
                info["terminal_observation"] = arrays["final_obs"][row]
                info["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
        return obs, reward, done, infos

    def close(self) -> None:
        """End the workers."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the TaskVectorEnv for each row: single environments are in the workers."""
        return [getattr(self.envs, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raise UserError: single environments are in the workers."""
        raise UserError(f"'{attr_name}' cannot be set later: pass it to TaskVectorEnv or the suite.")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Raise UserError: single environments are in the workers."""
        raise UserError(f"'{method_name}' cannot be called: single environments are in the workers.")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False for each row: TaskVectorEnv has no wrappers."""
        return [False] * len(self._rows(indices))

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return a frame of each row."""
        return self.envs.render()

    def _rows(self, indices: int | Iterable[int] | None) -> list[int]:
        if indices is None:
            return list(range(self.num_envs))
        return [indices] if isinstance(indices, int) else list(indices)
