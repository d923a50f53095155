"""The state of one Gymnasium environment in mid-episode: what is saved, and what is refused by name."""

from __future__ import annotations

import pickle
import random
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NoReturn

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Space
from numpy.typing import NDArray

from mtrl.envs.state import NotPlainError, decode, encode, restore_attributes, restore_physics, take_physics
from mtrl.errors import UserError

# Attributes of the machine or the screen instead of the simulation.
_FOREIGN = {"mujoco_renderer", "fullpath", "_ezpickle_args", "_ezpickle_kwargs", "_saved_kwargs"}
_FOREIGN |= {"spec", "_cached_spec", "render_mode", "metadata", "_metadata"}
_FORMERLY_FOREIGN = {"env", "model", "data"}  # older checkpoints hold no attributes of these names
# Arrays of MjData whose sizes depend on the current contacts. A step computes them before it reads them.
_VARIABLE = ("efc_", "iefc_", "island_", "contact", "dof_island", "tree_island", "map_")
_GLOBAL_GENERATORS = (random._inst, np.random.mtrand._rand)
_DESCRIPTORS = (property, classmethod, staticmethod, FunctionType)


class GlobalStreams:
    """The process's global random generators, NumPy's and that of `random`, with one state per environment.

    Environments of a worker share a process. If all drew from the same generators, their numbers would
    depend on the other environments, and a resumed run would have others. Exchanging NumPy's generator
    takes 2 microseconds. Copying the state of `random` takes 25, so it is exchanged only if a module of the
    environment's package uses `random`.

    Args:
        layers: of the environment.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._numpy = np.random.MT19937(0)
        self._python = random.Random(0).getstate() if _uses_random(layers) else None

    def seed(self, seed: int) -> None:
        """Enter, and seed both generators."""
        self.enter()
        np.random.seed(seed)
        if self._python is not None:
            random.seed(seed)

    def enter(self) -> None:
        """Make this environment's generators the global ones."""
        np.random.set_bit_generator(self._numpy)  # type: ignore[attr-defined]
        if self._python is not None:
            random.setstate(self._python)

    def leave(self) -> None:
        """Keep what the environment has drawn; call it before other code draws from `random`."""
        if self._python is not None:
            self._python = random.getstate()

    def take(self) -> dict[str, Any]:
        """Return the states of both generators."""
        return {"numpy": self._numpy.state, "python": encode(self._python, lambda _: None)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `take` returned."""
        self._numpy.state = state["numpy"]
        if self._python is not None and state["python"] is not None:
            self._python = decode(state["python"])


def _uses_random(layers: list[Any]) -> bool:
    """Whether a module of a layer's package, Gymnasium's aside, refers to `random` or a function of it."""
    modules = {type(layer).__module__ for layer in layers}
    packages = {name.partition(".")[0] for name in modules} - {"gymnasium"}
    for name, module in list(sys.modules.items()):
        if name in modules or name.partition(".")[0] in packages:
            for value in list(vars(module).values()):
                if value is random or getattr(value, "__self__", None) is _GLOBAL_GENERATORS[0]:
                    return True
    return False


class ExactState:
    """Takes and restores the state of an environment in mid-episode.

    The state holds all attributes of the environment and of its wrappers, and MuJoCo's simulation.
    `GlobalStreams` saves the global random generators. An attribute that cannot be stored exactly is refused
    by name, and so are class attributes that have changed: a run that resumes from another state without
    notice is worse than one that cannot be saved.

    Args:
        env: as `gymnasium.make` returned it, not yet reset.
        name: of the environment, for messages.
    """

    def __init__(self, env: Any, name: str) -> None:
        self._name = name
        self._layers = list(layers_of(env))
        bare = self._layers[-1]
        kinds = [type(getattr(bare, name, None)).__module__ for name in ("model", "data")]
        has_mujoco = all(kind.startswith("mujoco") for kind in kinds)
        self._mujoco = (bare.model, bare.data) if has_mujoco else None
        self._model_code = _model_code(bare.model) if has_mujoco else 0
        self._of_classes = self._class_attributes()
        self._callables = [dict(vars(layer)) for layer in self._layers]

    def take(self) -> dict[str, Any]:
        """Return the state; UserError if an attribute cannot be saved."""
        now, before = self._class_attributes(), self._of_classes
        for name in now | before:
            if now.get(name) is None or now.get(name) != before.get(name):
                self._refuse(f"{name}, an attribute of the class, changes or cannot be compared")
        once = _Once(vars(self._layers[-1]).get("_np_random"))
        # The bare environment comes first: it stores the generator, of which other attributes are aliases.
        pairs = reversed(list(zip(self._layers, self._callables, strict=True)))
        layers = [self._attributes(layer, at_start, once) for layer, at_start in pairs][::-1]
        return {"layers": layers, "physics": None if self._mujoco is None else self._physics(*self._mujoco)}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state that `take` returned."""

        def own_generator(_: Any) -> Any:
            return vars(self._layers[-1])["_np_random"]

        for layer, stored in reversed(list(zip(self._layers, state["layers"], strict=True))):
            functions = {name for name, value in stored.items() if _is_function(value)}
            plain = {name: value for name, value in stored.items() if name not in functions}
            held = vars(layer).items()
            changing = {name for name, v in held if not (callable(v) or self._is_constant(v, name))}
            restore_attributes(layer, plain, changing - _FORMERLY_FOREIGN, own_generator)
            for name in functions:
                _restore_function(getattr(layer, name), stored[name], own_generator)
        if self._mujoco is not None:
            restore_physics(*self._mujoco, state["physics"]["state"])
            for name, array in _data_arrays(self._mujoco[1]):
                if name in state["physics"]["derived"]:
                    array[...] = state["physics"]["derived"][name]

    def _attributes(self, layer: Any, at_start: Mapping[str, Any], once: _Once) -> dict[str, Any]:
        stored = {}
        for name, value in sorted(vars(layer).items(), key=lambda item: item[0] != "_np_random"):
            once.name = f"{type(layer).__name__}.{name}"
            try:
                if callable(value) and name not in _FOREIGN and at_start.get(name) != value:
                    raise NotPlainError("is a function that was assigned after the environment was made")
                if not self._is_constant(value, name):
                    stored[name] = self._function(value, once) if callable(value) else encode(value, once)
            except NotPlainError as error:
                self._refuse(f"{once.name} {error}", error)
        return stored

    def _function(self, value: Any, once: _Once) -> Any:
        """Return the variables that a function keeps between calls; NotPlainError if one cannot be stored."""
        if not isinstance(value, FunctionType):
            raise NotPlainError(f"is a callable {_kind(value)} whose state is not saved")
        names = value.__code__.co_freevars
        cells = dict(zip(names, (cell.cell_contents for cell in value.__closure__ or ()), strict=True))
        kept = {n: held for n, held in cells.items() if held is not value and not self._is_constant(held)}
        for held in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            if not isinstance(held, tuple | str | int | float | None):
                raise NotPlainError(f"is a function whose default is a {_kind(held)}, which may change")
        attributes = {name: held for name, held in vars(value).items() if name != "__wrapped__"}
        return {"kind": "function", "value": {n: encode(v, once) for n, v in (kept | attributes).items()}}

    def _is_constant(self, value: Any, name: str = "") -> bool:
        """Whether a value never changes, or is saved elsewhere."""
        value = value.__self__ if isinstance(value, MethodType) else value
        if any(value is part for part in (*self._layers, *(self._mujoco or ()))):
            return True
        if isinstance(value, Space):
            return value._np_random is None  # drawing from a space changes it
        if isinstance(value, FunctionType):
            return not (value.__closure__ or value.__defaults__ or value.__kwdefaults__ or vars(value))
        if isinstance(value, BuiltinFunctionType):
            # The global generators are saved with GlobalStreams.
            return isinstance(value.__self__, ModuleType | None) or value.__self__ in _GLOBAL_GENERATORS
        return name in _FOREIGN or isinstance(value, EnvSpec | ModuleType | type | np.ufunc)

    def _class_attributes(self) -> dict[str, bytes | None]:
        """Return the attributes of the layers' classes, outside of Gymnasium's base classes, as bytes."""
        found: dict[str, bytes | None] = {}
        for cls in dict.fromkeys(cls for layer in self._layers for cls in type(layer).__mro__):
            if cls.__module__ in ("builtins", "typing", "abc", "gymnasium.core"):
                continue
            for name, value in list(vars(cls).items()):
                fixed = name.startswith(("__", "_abc_")) or isinstance(value, _DESCRIPTORS)
                if not fixed and not self._is_constant(value, name):
                    key = f"{cls.__name__}.{name}"
                    try:
                        found[key] = pickle.dumps(value)
                    except Exception:  # noqa: BLE001 - a class may raise anything
                        found[key] = None
        return found

    def _refuse(self, what: str, cause: Exception | None = None) -> NoReturn:
        raise UserError(
            f"the environment {self._name} cannot be saved in mid-episode: {what}. Attributes may be "
            "numbers, strings, arrays, and lists or dicts of them."
        ) from cause

    def _physics(self, model: Any, data: Any) -> dict[str, Any]:
        if _model_code(model) != self._model_code:
            self._refuse("it has edited its MuJoCo model since it was made")
        # Some environments read derived quantities of the last step, such as positions, before the next step.
        derived = {name: array.copy() for name, array in _data_arrays(data)}
        return {"state": take_physics(model, data), "derived": derived}


class _Once:
    """Refuses what two attributes of an environment share, because restored attributes would not share it.

    Aliases of `own`, the environment's generator, are stored as such.
    """

    def __init__(self, own: np.random.Generator | None) -> None:
        self._own = own
        self.name = ""  # of the attribute that is stored now
        self._seen: dict[int, str] = {}  # id -> the first attribute that holds it

    def __call__(self, value: Any) -> dict[str, Any] | None:
        while isinstance(value, np.ndarray) and value.base is not None:
            if not isinstance(value.base, np.ndarray):
                raise NotPlainError("is a view of memory that belongs to the simulation")
            value = value.base
        shared = value.bit_generator if isinstance(value, np.random.Generator) else value
        if id(shared) not in self._seen:
            self._seen[id(shared)] = self.name
            return None
        if value is self._own:
            return {"kind": "view"}
        what = "memory" if shared is value else "a random generator"
        raise NotPlainError(f"shares {what} with {self._seen[id(shared)]}")


def layers_of(env: Any) -> Iterator[Any]:
    """The wrappers from the outside to the inside, and the bare environment."""
    while True:
        yield env
        if env is env.unwrapped:
            return
        env = env.env


def _is_function(stored: Any) -> bool:
    return isinstance(stored, dict) and stored["kind"] == "function"


def _restore_function(function: Any, stored: Mapping[str, Any], view: Callable[[Any], Any]) -> None:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name, value in stored["value"].items():
        if name in cells:
            cells[name].cell_contents = decode(value, view)
        else:
            setattr(function, name, decode(value, view))


def _kind(value: Any) -> str:
    owner = value.__self__ if isinstance(value, MethodType) else value
    return f"{type(owner).__module__}.{type(owner).__qualname__}"


def _model_code(model: Any) -> int:
    import mujoco

    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    return zlib.crc32(buffer.tobytes())


def _data_arrays(data: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    for name in dir(data):
        if name.startswith(("_", *_VARIABLE)):
            continue
        array = getattr(data, name)
        if isinstance(array, np.ndarray) and array.dtype != object and array.flags.writeable and array.size:
            yield name, array
