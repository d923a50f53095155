"""Recorded actions: random ones, and what upstream's scripted policies do in mtrl's environments."""

import warnings
from collections.abc import Sequence

import numpy as np
from metaworld.policies import ENV_POLICY_MAP
from numpy.typing import NDArray

from mtrl.envs.engine.vector import TaskVectorEnv
from mtrl.envs.metaworld.suite import MetaWorldSuite


class Actions:
    """Vector steps of actions, the same for all copies of a task.

    Args:
        names: tasks.
        steps: vector steps recorded of each kind.
    """

    def __init__(self, names: Sequence[str], steps: int) -> None:
        drawn = np.random.default_rng(0).uniform(-1, 1, (steps, len(names), 4))
        self._recorded = {"random": drawn.astype(np.float32), "scripted": _scripted(names, steps)}

    def of(self, kind: str, copies: int) -> list[object]:
        """Return one array [T*E, 4] for each vector step."""
        return list(np.repeat(self._recorded[kind], copies, axis=1))


def _scripted(names: Sequence[str], steps: int) -> NDArray[np.float32]:
    policies = [ENV_POLICY_MAP[name]() for name in names]
    recorded = np.empty((steps, len(names), 4), np.float32)
    with TaskVectorEnv(MetaWorldSuite(names), seed=0) as envs, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the policies' own: their actions are clipped
        obs, _ = envs.reset(options={"goal": np.zeros(len(names), np.int64)})
        for row in recorded:
            # In double precision, as upstream, and a copy: some policies write into it.
            actions = [
                policy.get_action(own.astype(np.float64)) for policy, own in zip(policies, obs, strict=True)
            ]
            row[:] = np.clip(actions, -1, 1)
            obs = envs.step(row)[0]
    return recorded
