"""Names of exchangeable parts (methods, networks, agents, suites, sinks) and how a user's own are found.

Wherever a name is accepted, `package.module:Name` or `path/to/file.py:Name` names a user's own part.
Imports the standard library only: `--help` lists names without importing what they stand for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtrl.errors import UserError, unknown_name

FILE_MODULE = "mtrl_user_"
"""Beginning of the names of modules that were loaded from `path/to/file.py`."""


class Registry(Mapping[str, Any]):
    """Parts of one kind by name; built-in ones are imported when they are first asked for.

    Args:
        kind: what a message calls such a part, for instance "method".
        builtin: name -> "package.module:Name".
    """

    def __init__(self, kind: str, builtin: Mapping[str, str]) -> None:
        self.kind = kind
        self._parts: dict[str, Any] = dict(builtin)

    def register(self, name: str, part: Any) -> None:
        """Make `part`, or what the text "package.module:Name" names, known as `name`.

        Raises:
            UserError: the name is taken by another part, or has a colon.
        """
        if ":" in name or self._parts.get(name, part) is not part:
            raise UserError(
                f"a {self.kind} cannot be registered as '{name}': the name is taken or has a colon."
            )
        self._parts[name] = part

    def __getitem__(self, name: str) -> Any:
        """Return the part of that name, or the one that "package.module:Name" names.

        Raises:
            UserError: no such part; the nearest valid name is given.
        """
        if ":" in name:
            return load_object(name, self.kind)
        if name not in self._parts:
            message = unknown_name(self.kind, name, self._parts)
            raise UserError(f"{message} Your own {self.kind} is written package.module:Name.")
        part = self._parts[name]
        if isinstance(part, str):
            part = self._parts[name] = load_object(part, self.kind)
        return part

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._parts))

    def __len__(self) -> int:
        return len(self._parts)


def load_object(path: str, kind: str) -> Any:
    """Return what "package.module:Name" or "path/to/file.py:Name" names; `kind` names it in messages.

    The working directory counts as a place for modules, as it does for `python -m`.

    Raises:
        UserError: no such file or module, or nothing of that name in it.
    """
    place, _, name = path.rpartition(":")
    module = _load_file(Path(place), kind) if place.endswith(".py") else _import(place, kind)
    try:
        return getattr(module, name)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(unknown_name(f"name in {place}", name, public)) from None


def _import(place: str, kind: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that nothing in it can take the place of an installed package
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise  # the module is there, something that it imports is not
        raise UserError(
            f"no module '{place}' for the {kind} '{place}:...': neither installed nor in '{here}'. "
            "Start from the folder that holds it, or add that folder to PYTHONPATH."
        ) from None


def _load_file(path: Path, kind: str) -> Any:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"no file '{path}' for the {kind}.")
    name = f"{FILE_MODULE}{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
