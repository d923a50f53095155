"""Turns an environment in mid-episode into plain values: Python attributes and MuJoCo's simulation.

Checkpoints hold what `encode` returns, so this format must stay readable. Containers, arrays, NumPy scalars
and generators are stored as dicts with a `kind`, all other values directly.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Place = Callable[[Any], dict[str, Any] | None]


class NotPlainError(Exception):
    """A value cannot be stored exactly; the message describes it."""


def encode(value: Any, place: Place) -> Any:
    """Return a value as plain containers, arrays, numbers and strings.

    Args:
        value: what an attribute holds.
        place: called with each array, list, dict and generator in the value. Returns what to store instead,
            or None to store the contents; may raise NotPlainError.

    Raises:
        NotPlainError: the value contains something that cannot be stored exactly.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        # A NumPy scalar divides, prints and promotes differently from a Python number, so its type is kept.
        return {"kind": "scalar", "value": np.asarray(value)}
    # A tuple needs no place: nothing can change it through another attribute.
    instead = place(value) if isinstance(value, np.ndarray | dict | list | np.random.Generator) else None
    if instead is not None:
        return instead
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return {"kind": "generator", "bits": type(bits).__name__, "value": bits.state}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {"kind": "array", "value": value.copy()}
    if type(value) is dict and all(type(key) in (str, int) for key in value):
        return {"kind": "dict", "value": {key: encode(item, place) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {"kind": type(value).__name__, "value": [encode(item, place) for item in value]}
    raise NotPlainError(f"is a {type(value).__module__}.{type(value).__qualname__} that has no plain form")


def decode(stored: Any, view: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the value that `encode` stored; `view` reads what `place` stored with the kind "view"."""
    if not isinstance(stored, dict):
        return stored
    kind, value = stored["kind"], stored.get("value")
    if kind == "view" and view is not None:
        return view(stored)
    if kind == "scalar":
        return np.asarray(value)[()]
    if kind == "array":
        return np.array(value)
    if kind == "generator":
        made = getattr(np.random, stored["bits"])
        if not (isinstance(made, type) and issubclass(made, np.random.BitGenerator)):
            raise ValueError(f"'{stored['bits']}' is no bit generator of NumPy")
        bits: Any = made()
        bits.state = value
        return np.random.Generator(bits)
    if kind == "dict":
        return {key: decode(item, view) for key, item in stored["value"].items()}
    items = [decode(item, view) for item in stored["value"]]
    return tuple(items) if kind == "tuple" else items


def restore_attributes(
    owner: Any,
    stored: Mapping[str, Any],
    changing: Iterable[str],
    view: Callable[[dict[str, Any]], Any] | None = None,
) -> None:
    """Set the stored attributes of an object, and delete those in `changing` that are not stored."""
    for name in list(changing):
        if name not in stored:
            delattr(owner, name)
    for name, value in stored.items():
        setattr(owner, name, decode(value, view))


def take_physics(model: Any, data: Any) -> NDArray[np.float64]:
    """Return the part of MuJoCo's data that the next step depends on."""
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state


def restore_physics(model: Any, data: Any, state: Any) -> None:
    """Restore `take_physics`, and compute what the forward pass derives from it, such as contacts."""
    import mujoco

    kind, state = mujoco.mjtState.mjSTATE_INTEGRATION, np.asarray(state, np.float64)
    mujoco.mj_setState(model, data, state, kind)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state, kind)  # the forward pass overwrites the solver's warm start
