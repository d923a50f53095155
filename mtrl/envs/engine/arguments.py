"""Checks of what users pass to the environments and of what the simulation returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.suite import TaskSuite
from mtrl.errors import NonFiniteError, UserError

_RENDER_MODES = (None, "human", "rgb_array", "depth_array")


def read_goals(options: Mapping[str, Any] | None, num_envs: int, num_goals: int) -> list[int] | None:
    """Return the goals asked for in the options of a reset, None if there are none."""
    unknown = set(options or {}) - {"goal"}
    if unknown:
        raise UserError(f"reset knows the option 'goal' only; found {', '.join(sorted(unknown))}.")
    if not options:
        return None
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
    """Return the seed; refuse what is no 32-bit unsigned integer."""
    # Simulations seed NumPy's legacy generator with it, which takes 32 bits.
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2**32 - 1; found {seed!r}.")
    return int(seed)


def check_positive(**sizes: object) -> None:
    """Refuse sizes, given by name, that are no positive integers."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise UserError(f"{name} must be a positive integer; found {size!r}.")


def check_choices(
    render_mode: str | None, step_timeout: float, max_restarts: object, niceness: object
) -> None:
    """Refuse values outside of the few that exist."""
    if render_mode not in _RENDER_MODES:
        raise UserError(
            f"render_mode must be one of {', '.join(map(str, _RENDER_MODES))}; found {render_mode!r}."
        )
    if not step_timeout > 0:
        raise UserError(f"step_timeout must be a positive number of seconds; found {step_timeout!r}.")
    for name, number in (("max_restarts", max_restarts), ("worker_niceness", niceness)):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise UserError(f"{name} must be zero or a positive integer; found {number!r}.")


def check_suite(suite: TaskSuite) -> None:
    """Refuse a suite whose description contradicts itself."""
    names, kind = tuple(suite.task_names), type(suite).__name__
    if not names or len(set(names)) < len(names):
        raise UserError(f"{kind}.task_names must be one or more different names; found {names}.")
    if "success" not in suite.info_keys:
        raise UserError(
            f"{kind}.info_keys must have 'success' (NaN in tasks without one); found {suite.info_keys}."
        )
    check_positive(obs_dim=suite.obs_dim, action_dim=suite.action_dim)


def check_finite(values: NDArray[np.float32], tasks: Sequence[str], what: str) -> None:
    """Refuse values [N, ...] that are not finite, with the tasks [N] of their rows."""
    finite = np.isfinite(values)
    if finite.all():
        return
    bad = np.flatnonzero(~finite.reshape(len(tasks), -1).all(axis=1)).tolist()
    names = ", ".join(dict.fromkeys(tasks[row] for row in bad))
    raise NonFiniteError(f"non-finite {what} in {names} (environments {bad}).")


def check_fits(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a saved state whose header differs from that of the environments at hand."""
    for key, mine in expected.items():
        if state.get(key) != mine:
            raise UserError(
                f"the saved environment state does not fit these environments: {key} is "
                f"{state.get(key)} there and {mine} here. Make environments with the saved values."
            )
