"""Exact snapshot of a Meta-World environment in mid-episode, as arrays, numbers, strings and containers.

MuJoCo's integration state, the model arrays that resets edit, and every plain attribute of the environment.
Attributes that are live views of simulation arrays (upstream's `init_left_pad`, for one) are stored as views:
which array, which offset. Copying them would change upstream's rewards.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mtrl.envs.state import NotPlainError, encode, restore_attributes, restore_physics, take_physics

EDITED_MODEL_ARRAYS = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "eq_data", "geom_rgba")
"""Arrays of the model that constructors and resets of some task write into."""
_DATA_ARRAYS = (
    *("qpos", "qvel", "mocap_pos", "mocap_quat", "xpos", "xquat", "xmat", "xipos", "ximat"),
    *("geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
)
# Paths and rendering belong to the machine, not to the simulation. With given goals upstream draws nothing.
_FOREIGN = {
    *("_ezpickle_args", "_ezpickle_kwargs", "fullpath", "_np_random"),
    *("render_mode", "camera_name", "camera_id", "width", "height"),
}


class _Region(NamedTuple):
    owner: str
    field: str
    array: NDArray[Any]
    start: int


def take(env: Any) -> dict[str, Any]:
    """Return the state of `env`: plain containers, arrays, numbers and strings."""
    return {
        "physics": take_physics(env.model, env.data),
        "model": {name: np.array(getattr(env.model, name)) for name in EDITED_MODEL_ARRAYS},
        "site_xpos": np.array(env.data.site_xpos),
        "attributes": _attributes(env),
    }


def restore(env: Any, state: dict[str, Any]) -> None:
    """Put `env`, of the same task, into a state returned by `take`."""
    for name, value in state["model"].items():
        getattr(env.model, name)[:] = value
    restore_physics(env.model, env.data, state["physics"])
    # Upstream writes target positions into this array directly; the forward pass has undone it.
    env.data.site_xpos[:] = state["site_xpos"]
    restore_attributes(env, state["attributes"], _attributes(env), partial(_view, env))


def _attributes(env: Any) -> dict[str, Any]:
    regions = [
        _Region(owner, field, array, array.__array_interface__["data"][0])
        for owner, fields in (("data", _DATA_ARRAYS), ("model", EDITED_MODEL_ARRAYS))
        for field in fields
        for array in (getattr(getattr(env, owner), field),)
    ]
    stored = {}
    for name, value in vars(env).items():
        # Spaces, models and the like have no plain form; upstream builds them once and never changes them.
        if name not in _FOREIGN:
            with suppress(NotPlainError):
                stored[name] = encode(value, partial(_place, regions))
    return stored


def _place(regions: list[_Region], value: Any) -> dict[str, Any] | None:
    """Return where in the simulation's memory an array lies; None if it has memory of its own."""
    if not isinstance(value, np.ndarray) or not value.size:
        return None
    address = value.__array_interface__["data"][0]
    for owner, field, array, start in regions:
        if start <= address < start + array.nbytes and value.dtype == array.dtype:
            return {
                "kind": "view",
                "owner": owner,
                "field": field,
                "offset": (address - start) // array.itemsize,
                "shape": list(value.shape),
                "strides": list(value.strides),
            }
    return None


def _view(env: Any, stored: dict[str, Any]) -> NDArray[Any]:
    flat = getattr(getattr(env, stored["owner"]), stored["field"]).reshape(-1)
    return as_strided(flat[stored["offset"] :], tuple(stored["shape"]), tuple(stored["strides"]))
