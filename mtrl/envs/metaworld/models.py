"""One compiled MuJoCo model per file and process, lent to one environment at a time.

A model of Meta-World takes 20 MB, of which resets edit 4 kB: environments with a model each fill the memory,
and making them takes most of the start-up.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from mtrl.envs.metaworld.snapshot import EDITED_MODEL_ARRAYS

_models: dict[str, _SharedModel] = {}  # by file


class _SharedModel:
    def __init__(self, path: str) -> None:
        self.model = mujoco.MjModel.from_xml_path(path)
        self.arrays = tuple(getattr(self.model, name) for name in EDITED_MODEL_ARRAYS)
        self.compiled = tuple(array.copy() for array in self.arrays)
        self.holder = ModelLease(self)


class ModelLease:
    """One environment's share of a model: what it has edited in it."""

    def __init__(self, shared: _SharedModel) -> None:
        self._shared = shared
        self._edits: dict[int, NDArray[np.generic]] = {}  # of `shared.arrays`, those not as compiled
        self._unsaved = False

    def take(self, *, editing: bool) -> None:
        """Put the model into the state in which this environment left it, at first as compiled."""
        shared = self._shared
        if shared.holder is not self:
            last = shared.holder
            if last._unsaved:
                last._save()
            for index in last._edits.keys() | self._edits.keys():
                shared.arrays[index][:] = self._edits.get(index, shared.compiled[index])
            shared.holder = self
        self._unsaved |= editing

    def _save(self) -> None:
        pairs = enumerate(zip(self._shared.arrays, self._shared.compiled, strict=True))
        self._edits = {i: now.copy() for i, (now, before) in pairs if not np.array_equal(now, before)}
        self._unsaved = False


def initialize_simulation(env: Any) -> tuple[Any, Any]:
    """Return model and data as gymnasium's MujocoEnv does; all environments of a file share its model."""
    shared = _models.get(env.fullpath)
    if shared is None:
        shared = _models[env.fullpath] = _SharedModel(env.fullpath)
    env._model_lease = ModelLease(shared)
    lend_model(env, editing=True)
    screen = shared.model.vis.global_
    screen.offwidth, screen.offheight = max(screen.offwidth, env.width), max(screen.offheight, env.height)
    return shared.model, mujoco.MjData(shared.model)


def lend_model(env: Any, *, editing: bool = False) -> None:
    """Call before anything that uses the model of `env`; does nothing where it has one of its own.

    Args:
        env: upstream's environment.
        editing: what follows may write into the arrays of EDITED_MODEL_ARRAYS.
    """
    lease: ModelLease | None = env.__dict__.get("_model_lease")
    if lease is not None:
        lease.take(editing=editing)
