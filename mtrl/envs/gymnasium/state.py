"""Exact state of a Gymnasium environment in mid-episode, as plain containers, numbers, strings and arrays.

Saved are, of the environment and of every wrapper around it, all attributes that are plain values or NumPy
generators, and what MuJoCo's simulation holds. Anything else that could decide the next numbers is refused by
name: resuming to something else than was saved would be worse than not saving.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from mtrl.errors import UserError

# References between the layers, and what belongs to the machine or the screen instead of the simulation.
_FOREIGN = {"env", "model", "data", "mujoco_renderer", "fullpath", "_ezpickle_args", "_ezpickle_kwargs"}
_FOREIGN |= {"_saved_kwargs", "spec", "_cached_spec", "render_mode", "metadata", "_metadata"}
# Arrays of MjData whose sizes follow the contacts of the moment; a step computes them before it reads them.
_VARIABLE = ("efc_", "iefc_", "island_", "contact", "dof_island", "tree_island", "map_")


class EnvState:
    """Takes and restores the state of one environment.

    Args:
        env: as `gymnasium.make` returned it, not yet reset.
        name: of the environment, for messages.
    """

    def __init__(self, env: Any, name: str) -> None:
        self._name = name
        self._layers = list(_layers(env))
        bare = self._layers[-1]
        has_mujoco = all(type(getattr(bare, part, None)).__module__.startswith("mujoco") for part in _MUJOCO)
        self._mujoco = (bare.model, bare.data) if has_mujoco else None
        self._model_code = _model_code(bare.model) if has_mujoco else 0

    def take(self) -> dict[str, Any]:
        """Return the state; UserError if it has parts that cannot be saved."""
        layers = [self._attributes(layer) for layer in self._layers]
        return {"layers": layers, "physics": None if self._mujoco is None else self._physics(*self._mujoco)}

    def restore(self, state: dict[str, Any]) -> None:
        """Put the environment into a state that `take` returned."""
        for layer, stored in zip(self._layers, state["layers"], strict=True):
            for name in [name for name in vars(layer) if name not in stored and not _constant(layer, name)]:
                delattr(layer, name)
            for name, value in stored.items():
                setattr(layer, name, _decode(value))
        if self._mujoco is not None:
            _restore_physics(*self._mujoco, state["physics"])

    def _attributes(self, layer: Any) -> dict[str, Any]:
        seen: set[int] = set()
        stored = {}
        for name, value in vars(layer).items():
            if _constant(layer, name):
                continue
            try:
                stored[name] = _encode(value, seen)
            except _NotPlainError as error:
                raise UserError(
                    f"the environment {self._name} cannot be saved in mid-episode: "
                    f"{type(layer).__name__}.{name} {error}. Checkpoints need environments whose attributes "
                    "are numbers, strings, arrays, and lists or dicts of them."
                ) from error
        return stored

    def _physics(self, model: Any, data: Any) -> dict[str, Any]:
        import mujoco

        if _model_code(model) != self._model_code:
            raise UserError(
                f"the environment {self._name} cannot be saved in mid-episode: it has edited its MuJoCo "
                "model since it was made. Edits that last, made by the definition of the task, are fine."
            )
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, data, state, kind)
        # What a step computed on its way, some environments read before the next (positions of bodies, say).
        return {"state": state, "derived": {name: array.copy() for name, array in _data_arrays(data)}}


_MUJOCO = ("model", "data")


class _NotPlainError(Exception):
    pass


def _layers(env: Any) -> Iterator[Any]:
    """The wrappers from the outside to the inside, and the bare environment."""
    while True:
        yield env
        if env is env.unwrapped:
            return
        env = env.env


def _constant(layer: Any, name: str) -> bool:
    value = vars(layer)[name]
    if isinstance(value, Space):
        return value._np_random is None  # a space that has been drawn from is no constant
    return name in _FOREIGN or isinstance(value, EnvSpec | type) or callable(value)


def _model_code(model: Any) -> int:
    import mujoco

    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return zlib.crc32(buffer.tobytes())


def _data_arrays(data: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    for name in dir(data):
        if not name.startswith(("_", *_VARIABLE)):
            array = getattr(data, name)
            if (
                isinstance(array, np.ndarray)
                and array.dtype != object
                and array.flags.writeable
                and array.size
            ):
                yield name, array


def _restore_physics(model: Any, data: Any, stored: dict[str, Any]) -> None:
    import mujoco

    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.asarray(stored["state"], np.float64)
    mujoco.mj_setState(model, data, state, kind)
    mujoco.mj_forward(model, data)  # sizes and contents of what is not stored, such as contacts
    mujoco.mj_setState(model, data, state, kind)  # the forward pass writes the solver's warm start
    for name, array in _data_arrays(data):
        if name in stored["derived"]:
            array[...] = stored["derived"][name]


def _encode(value: Any, seen: set[int]) -> Any:
    """Return a plain value; containers and arrays carry their kind. `seen`: those of this layer so far."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.random.Generator):
        kind = type(value.bit_generator).__name__
        return {"kind": "generator", "bits": kind, "value": value.bit_generator.state}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {"kind": "scalar", "value": np.asarray(value)}
    if not isinstance(value, dict | list | tuple | np.ndarray):
        raise _NotPlainError(f"is a {type(value).__module__}.{type(value).__qualname__}")
    owner = _owner(value) if isinstance(value, np.ndarray) else value
    if not isinstance(value, tuple):
        if id(owner) in seen:
            raise _NotPlainError("shares memory with another attribute")
        seen.add(id(owner))
    if isinstance(value, np.ndarray):
        return {"kind": "array", "value": value.copy()}
    if type(value) is dict and all(type(key) in (str, int) for key in value):
        return {"kind": "dict", "value": {key: _encode(item, seen) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {"kind": type(value).__name__, "value": [_encode(item, seen) for item in value]}
    raise _NotPlainError(f"is a {type(value).__name__} with unusual entries")


def _owner(array: NDArray[Any]) -> Any:
    """The array whose memory this one shows."""
    if array.dtype.kind not in "biufc":
        raise _NotPlainError(f"is an array of {array.dtype}")
    while array.base is not None:
        if not isinstance(array.base, np.ndarray):
            raise _NotPlainError("is a view of memory that belongs to the simulation")
        array = array.base
    return array


def _decode(stored: Any) -> Any:
    if not isinstance(stored, dict):
        return stored
    kind, value = stored["kind"], stored["value"]
    if kind == "scalar":
        return np.asarray(value)[()]
    if kind == "array":
        return np.array(value)
    if kind == "generator":
        bits = getattr(np.random, stored["bits"])()
        bits.state = value
        return np.random.Generator(bits)
    if kind == "dict":
        return {key: _decode(item) for key, item in value.items()}
    items = [_decode(item) for item in value]
    return tuple(items) if kind == "tuple" else items
