"""Checks of what users pass to the environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtrl.envs.goals import GOALS_PER_TASK
from mtrl.errors import UserError

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


def check_seed(seed: object) -> None:
    """Refuse what is no 32-bit unsigned integer."""
    # Upstream seeds NumPy's legacy generator, which takes 32 bits.
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= int(seed) < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2**32 - 1; found {seed!r}.")


def check_positive(**sizes: object) -> None:
    """Refuse sizes, given by name, that are no positive integers."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise UserError(f"{name} must be a positive integer; found {size!r}.")


def check_choices(reward_version: str, num_goals: int, render_mode: str | None, step_timeout: float) -> None:
    """Refuse values outside of the few that exist."""
    if reward_version not in ("v1", "v2"):
        raise UserError(f"reward_version must be 'v1' or 'v2'; found {reward_version!r}.")
    if num_goals > GOALS_PER_TASK:
        raise UserError(f"num_goals must be at most {GOALS_PER_TASK}, as upstream has; found {num_goals}.")
    if render_mode not in _RENDER_MODES:
        raise UserError(
            f"render_mode must be one of {', '.join(map(str, _RENDER_MODES))}; found {render_mode!r}."
        )
    if not step_timeout > 0:
        raise UserError(f"step_timeout must be a positive number of seconds; found {step_timeout!r}.")
