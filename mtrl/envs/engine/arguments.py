"""Checks of arguments of the environments and of values that a simulation returns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.suite import TaskSuite
from mtrl.errors import NonFiniteError, UserError

_OWN_INFO = ("restarted", "final_obs", "_final_obs")
_RENDER_MODES = (None, "human", "rgb_array", "depth_array")


def read_goals(options: Mapping[str, Any] | None, num_envs: int, num_goals: int) -> list[int] | None:
    """Return the goals in the options of a reset, None if there are no options."""
    if not options:
        return None
    if unknown := sorted(options.keys() - {"goal"}):
        raise UserError(f"reset has one option, 'goal'; found {', '.join(unknown)}.")
    goals = np.asarray(options["goal"])
    if goals.shape != (num_envs,) or not np.issubdtype(goals.dtype, np.integer):
        raise UserError(
            f"options['goal'] must be an integer array of shape [{num_envs}]; "
            f"found {goals.dtype} of shape {list(goals.shape)}."
        )
    if goals.min() < 0 or goals.max() >= num_goals:
        raise UserError(f"goals must lie in 0..{num_goals - 1}; found {goals.min()}..{goals.max()}.")
    return [int(goal) for goal in goals]


def check_seed(seed: object) -> int:
    """Return the seed; refuse anything but a 32-bit unsigned integer."""
    # Simulations use it to seed NumPy's legacy generator, which takes 32 bits.
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2**32 - 1; found {seed!r}.")
    return int(seed)


def read_integers(minimum: int, **numbers: object) -> list[int]:
    """Return numbers, given by name, as Python's; refuse any but integers of at least `minimum`."""
    read = []
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < minimum:
            raise UserError(f"{name} must be an integer of at least {minimum}; found {number!r}.")
        read.append(int(number))
    return read


def check_choices(render_mode: str | None, step_timeout: float) -> None:
    """Refuse an unknown render mode and a timeout that is not positive."""
    if render_mode not in _RENDER_MODES:
        modes = ", ".join(map(str, _RENDER_MODES))
        raise UserError(f"render_mode must be one of {modes}; found {render_mode!r}.")
    if not step_timeout > 0:
        raise UserError(f"step_timeout must be a positive number of seconds; found {step_timeout!r}.")


def read_rows(rows: Iterable[int], num_envs: int) -> list[int]:
    """Return the numbers of environments; refuse those that there are not."""
    read = list(rows)
    if unknown := [row for row in read if not 0 <= row < num_envs]:
        raise UserError(f"rows must lie in 0..{num_envs - 1}; found {', '.join(map(repr, unknown))}.")
    return read


def check_suite(suite: TaskSuite) -> list[int]:
    """Return a suite's obs_dim, action_dim and num_goals; refuse attributes that contradict each other."""
    kind = type(suite).__name__
    for name in ("task_names", "info_keys"):
        if isinstance(found := getattr(suite, name), str):
            raise UserError(
                f'{kind}.{name} must be a tuple of names; found "{found}". One name is written ("{found}",).'
            )
    names = tuple(suite.task_names)
    if not names or len(set(names)) < len(names):
        raise UserError(f"{kind}.task_names must be one or more different names; found {names}.")
    if "success" not in suite.info_keys:
        raise UserError(
            f"{kind}.info_keys must contain 'success' (NaN in tasks that define none); "
            f"found {suite.info_keys}."
        )
    if taken := [key for key in suite.info_keys if key in _OWN_INFO]:
        raise UserError(f"{kind}.info_keys must not contain what the engine adds; found {', '.join(taken)}.")
    return read_integers(1, obs_dim=suite.obs_dim, action_dim=suite.action_dim, num_goals=suite.num_goals)


def check_observation(obs: Any, obs_dim: int, task: str) -> None:
    """Refuse an observation that is no vector of that size: NumPy would repeat a single number."""
    if np.shape(obs) != (obs_dim,):
        raise UserError(
            f"observations of task {task} must have the suite's shape, {[obs_dim]}; found "
            f"{list(np.shape(obs))}."
        )


def check_finite(values: NDArray[np.float32], tasks: Sequence[str], what: str) -> None:
    """Raise NonFiniteError if one of the values [N, ...] is not finite; `tasks` [N] name the rows."""
    finite = np.isfinite(values)
    if finite.all():
        return
    bad = np.flatnonzero(~finite.reshape(len(tasks), -1).all(axis=1)).tolist()
    names = ", ".join(dict.fromkeys(tasks[row] for row in bad))
    raise NonFiniteError(f"non-finite {what} in {names} (environments {bad}).")


def check_header(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a saved state whose header differs from the header of these environments."""
    for key, mine in expected.items():
        if state.get(key) != mine:
            raise UserError(
                f"the saved environment state does not fit these environments: {key} is "
                f"{state.get(key)} there and {mine} here. Make the environments with the saved values."
            )
