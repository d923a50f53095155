"""Exact snapshot of a Meta-World environment in mid-episode, as arrays, numbers, strings and containers.

MuJoCo's integration state, the model arrays that resets edit, and every plain attribute of the environment.
Attributes that are live views of simulation arrays (upstream's `init_left_pad`, for one) are stored as views:
which array, which offset. Copying them would change upstream's rewards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import mujoco
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
EDITED_MODEL_ARRAYS = ("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "eq_data", "geom_rgba")
"""Arrays of the model that constructors and resets of some task write into."""
_DATA_ARRAYS = (
    *("qpos", "qvel", "mocap_pos", "mocap_quat", "xpos", "xquat", "xmat", "xipos", "ximat"),
    *("geom_xpos", "geom_xmat", "site_xpos", "site_xmat"),
)
# Paths and rendering belong to the machine, not to the simulation.
_FOREIGN = {
    *("_ezpickle_args", "_ezpickle_kwargs", "fullpath"),
    *("render_mode", "camera_name", "camera_id", "width", "height"),
}


class _NotPlainError(Exception):
    """A space, a model or another object that upstream builds once and never changes."""


class _Region(NamedTuple):
    owner: str
    field: str
    array: NDArray[Any]
    start: int


def take(env: Any) -> dict[str, Any]:
    """Return the state of `env`: plain containers, arrays, numbers and strings."""
    physics = np.empty(mujoco.mj_stateSize(env.model, _STATE))
    mujoco.mj_getState(env.model, env.data, physics, _STATE)
    return {
        "physics": physics,
        "model": {name: np.array(getattr(env.model, name)) for name in EDITED_MODEL_ARRAYS},
        "site_xpos": np.array(env.data.site_xpos),
        "attributes": dict(_plain_attributes(env)),
    }


def restore(env: Any, state: dict[str, Any]) -> None:
    """Put `env`, of the same task, into a state returned by `take`."""
    for name, value in state["model"].items():
        getattr(env.model, name)[:] = value
    mujoco.mj_setState(env.model, env.data, state["physics"], _STATE)
    mujoco.mj_forward(env.model, env.data)
    # The forward pass overwrites the solver's warm start, which is part of the state.
    mujoco.mj_setState(env.model, env.data, state["physics"], _STATE)
    env.data.site_xpos[:] = state["site_xpos"]
    stored = state["attributes"]
    for name, _ in list(_plain_attributes(env)):
        if name not in stored:
            delattr(env, name)
    for name, value in stored.items():
        setattr(env, name, _decode(env, value))


def _plain_attributes(env: Any) -> Iterator[tuple[str, Any]]:
    regions = [
        _Region(owner, field, array, array.__array_interface__["data"][0])
        for owner, fields in (("data", _DATA_ARRAYS), ("model", EDITED_MODEL_ARRAYS))
        for field in fields
        for array in (getattr(getattr(env, owner), field),)
    ]
    for name, value in vars(env).items():
        if name in _FOREIGN:
            continue
        try:
            yield name, _encode(value, regions)
        except _NotPlainError:
            continue


def _encode(value: Any, regions: list[_Region]) -> Any:
    if isinstance(value, np.generic):
        # A numpy scalar divides, prints and promotes differently from a Python number: keep its type.
        return {"kind": "scalar", "value": np.array(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _view_of(value, regions) or {"kind": "array", "value": value.copy()}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"kind": "dict", "value": {key: _encode(item, regions) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {"kind": type(value).__name__, "value": [_encode(item, regions) for item in value]}
    raise _NotPlainError


def _view_of(value: NDArray[Any], regions: list[_Region]) -> dict[str, Any] | None:
    address = value.__array_interface__["data"][0]
    for owner, field, array, start in regions:
        if value.size and start <= address < start + array.nbytes and value.dtype == array.dtype:
            return {
                "kind": "view",
                "owner": owner,
                "field": field,
                "offset": (address - start) // array.itemsize,
                "shape": list(value.shape),
                "strides": list(value.strides),
            }
    return None


def _decode(env: Any, stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    kind, value = stored["kind"], stored.get("value")
    if kind == "scalar":
        return np.asarray(value)[()]
    if kind == "array":
        return np.array(value)
    if kind == "view":
        flat = getattr(getattr(env, stored["owner"]), stored["field"]).reshape(-1)
        return as_strided(flat[stored["offset"] :], tuple(stored["shape"]), tuple(stored["strides"]))
    if kind == "dict":
        return {key: _decode(env, item) for key, item in stored["value"].items()}
    items = [_decode(env, item) for item in stored["value"]]
    return tuple(items) if kind == "tuple" else items
