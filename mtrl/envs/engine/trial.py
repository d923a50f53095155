"""A trial of an environment's saved state: after restoring it, equal actions must give equal numbers."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mtrl.envs.suite import TaskEnv
from mtrl.errors import UserError

_STEPS = 8


def try_state(env: TaskEnv, task: str, action_dim: int) -> tuple[str | None, Any]:
    """Save and restore an environment within an episode; return the problem, None without one, and the state.

    Eight steps, a reset and eight more steps are compared. This finds state outside of the environment, such
    as a global random generator or a variable of a module.
    """
    actions = np.random.default_rng(0).uniform(-1, 1, (_STEPS, action_dim)).astype(np.float32)

    def played() -> list[Any]:
        numbers: list[Any] = []
        for goal in (0, 1):
            for action in actions:
                obs, reward, terminated, truncated, _ = env.step(action)
                numbers.append((np.asarray(obs).tobytes(), repr(reward), terminated, truncated))
                if terminated or truncated:
                    break
            numbers.append(np.asarray(env.reset(goal)).tobytes())
        return numbers

    with _own_global_streams():
        env.reset(0)
        env.step(actions[0])
        try:
            state = env.get_state()
            copied = pickle.loads(pickle.dumps(state))
            expected = played()
            env.set_state(copied)
            again = played()
        except UserError as error:
            return str(error), None
        except Exception as error:  # noqa: BLE001 - a class of the user's own may raise anything
            return f"task {task} cannot be saved in mid-episode: {type(error).__name__}: {error}", None
        if again != expected:
            return (
                f"task {task} cannot be saved in mid-episode: restored by set_state, it continues with other "
                "numbers, so something outside of its state decides them, such as a global random generator."
            ), None
        return None, state


@contextmanager
def _own_global_streams() -> Iterator[None]:
    """Keep the global random generators as they are, on which environments of this process may depend."""
    before = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
