"""What one step hands out, read from the shared arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtrl.envs.engine.shared import SharedArrays

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
StepResult = tuple[Floats, Floats, Flags, Flags, dict[str, Any]]


def collect(
    arrays: SharedArrays, info_keys: Sequence[str], before: Floats, unstepped: Flags, lost: Flags
) -> StepResult:
    """Return copies of observation, reward, terminated, truncated and infos.

    Args:
        arrays: as the workers left them.
        info_keys: names of the entries of `arrays.info`.
        before: the observations handed out before this step [N, O].
        unstepped: rows [N] of workers that failed in this step: their flags mean nothing.
        lost: those and the rows whose actions answered an observation of an episode that was lost.
    """
    obs, reward, info = arrays.obs.copy(), arrays.reward.copy(), arrays.info.T.copy()
    # A lost row ends its episode as the time limit does, and what it would store is a harmless standstill:
    # callers who do not look at `restarted` neither bootstrap across episodes nor meet invented numbers.
    terminated = arrays.terminated & ~lost
    truncated = (arrays.truncated & ~unstepped) | lost
    infos: dict[str, Any] = dict(zip(info_keys, info, strict=True))
    infos["restarted"] = lost
    ended = terminated | truncated
    if ended.any():
        final_obs = np.where(ended[:, None], arrays.final_obs, obs)
        if lost.any():
            reward[lost], info[:, lost] = 0.0, 0.0
            final_obs[lost] = before[lost]
        infos["final_obs"] = final_obs
    return obs, reward, terminated, truncated, infos
