"""Plug-ins by name: methods, networks, agents, suites and sinks.

Wherever a name is accepted, `package.module:Name` or `path/to/file.py:Name` names a user's own plug-in.
Imports the standard library only: `--help` lists names without importing the plug-ins.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
import typing
import zlib
from collections.abc import Collection, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from mtrl.errors import UserError, unknown_name

FILE_MODULE = "mtrl_user_"
"""Beginning of the names of modules that were loaded from `path/to/file.py`."""

REQUIRED = inspect.Parameter.empty

_ARGUMENT = re.compile(r"(?P<name>\w+)(?: \([^)]*\))?:\s*(?P<text>.*)")


class Option(NamedTuple):
    """A named, typed argument with its default (or REQUIRED) and its meaning."""

    name: str
    annotation: Any
    default: Any
    help: str


class Registry(Mapping[str, Any]):
    """Plug-ins of one kind by name; built-in ones are imported at their first use.

    Args:
        kind: what messages call such a plug-in, for instance "method".
        builtin: name -> "package.module:Name".
        given: arguments that the engine passes to every plug-in of this kind; all others are options. A
            plug-in may name further such arguments in an attribute `given`.
        wrappers: whether a pair of options NAME and NAME_options names another plug-in of this kind, which
            this one wraps, and its options.
        bibliography: a BibTeX file. A plug-in's attribute `papers` has keys of it, or whole entries, and
            `credit` is a sentence where there is more to say or no paper.
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, str],
        given: Collection[str] = (),
        *,
        wrappers: bool = False,
        bibliography: Path | None = None,
    ) -> None:
        self.kind, self.given, self.wrappers = kind, frozenset(given), wrappers
        self._bibliography = bibliography
        self._plugins: dict[str, Any] = dict(builtin)

    def register(self, name: str, plugin: Any) -> None:
        """Add `plugin`, or the plug-in that the text "package.module:Name" names, as `name`.

        Raises:
            UserError: another plug-in has that name, or the name has a colon.
        """
        refused = f"a {self.kind} cannot be registered as '{name}'"
        if ":" in name:
            raise UserError(f"{refused}: a name has no colon.")
        if self._plugins.get(name, plugin) is not plugin:
            raise UserError(f"{refused}: the name is taken. Choose another.")
        self._plugins[name] = plugin

    def check(self, name: str) -> None:
        """Raise UserError, as `[name]`, for an unknown name without a colon; imports nothing."""
        if ":" not in name and name not in self._plugins:
            message = unknown_name(self.kind, name, self._plugins)
            raise UserError(f"{message} Your own {self.kind} is written package.module:Name or file.py:Name.")

    def options(self, name: str) -> dict[str, Option]:
        """Return the options of the plug-in of that name; raises as `[name]` and `options_of`."""
        plugin = self[name]
        # `vars`, because `given` is not inherited: the engine does not pass these arguments to subclasses.
        return options_of(plugin, self.given | set(vars(plugin).get("given", ())))

    def wrapped(self, options: Collection[str]) -> dict[str, str]:
        """Return {NAME: NAME_options} of the wrapped plug-ins among `options`."""
        names = options if self.wrappers else ()
        return {name: f"{name}_options" for name in names if f"{name}_options" in options}

    def summary(self, name: str) -> str:
        """Return the first line of the docstring of the plug-in of that name."""
        return (inspect.getdoc(self[name]) or "").partition("\n")[0]

    @functools.cached_property
    def references(self) -> dict[str, str]:
        """Entries of the bibliography by their keys."""
        if self._bibliography is None:
            return {}
        text = self._bibliography.read_text(encoding="utf-8").strip()
        return {re.split(r"[{,]", entry)[1]: entry for entry in text.split("\n\n")}

    def citation(self, name: str) -> tuple[str, str]:
        """Return what to cite for the plug-in of that name: its sentence, and BibTeX; "" for none."""
        plugin = self[name]
        papers = getattr(plugin, "papers", ())
        papers = (papers,) if isinstance(papers, str) else papers  # of a user's class
        entries = (self.references.get(key, key) for key in papers)
        return getattr(plugin, "credit", ""), "\n\n".join(entries)

    def __getitem__(self, name: str) -> Any:
        """Return the plug-in of that name, or the one that "package.module:Name" names.

        Raises:
            UserError: no such plug-in; the nearest valid name is given.
        """
        if ":" in name:
            return load_object(name, self.kind)
        self.check(name)
        plugin = self._plugins[name]
        if isinstance(plugin, str):
            plugin = self._plugins[name] = load_object(plugin, self.kind)
        return plugin

    def __contains__(self, name: object) -> bool:
        return name in self._plugins

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._plugins))

    def __len__(self) -> int:
        return len(self._plugins)


def options_of(plugin: Any, given: Collection[str] = ()) -> dict[str, Option]:
    """Return the arguments of a class or function by name, without those in `given`.

    The type is the annotation, else the type of the default; the meaning is the entry under `Args:` of the
    docstring. Raises UserError for an annotation that cannot be evaluated.
    """
    typed = plugin
    if inspect.isclass(plugin):
        owner = next(base for base in plugin.__mro__ if "__init__" in vars(base))
        # The constructor of a dataclass has types of fields that it may inherit from another module, where
        # their names are known.
        typed = owner if "__dataclass_params__" in vars(owner) else plugin.__init__
    try:
        hints = typing.get_type_hints(typed, include_extras=True)
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise UserError(f"the types of {plugin.__name__}'s arguments cannot be read: {error}.") from error
    documented: dict[str, str] = {}
    for owner in reversed(plugin.__mro__) if inspect.isclass(plugin) else (plugin,):
        # A subclass may document arguments of an inherited __init__.
        documented |= _documented(owner.__doc__ or "")
    options = {}
    for name, parameter in inspect.signature(plugin).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic or parameter.kind is parameter.POSITIONAL_ONLY or name in given:
            continue
        default = parameter.default
        guess = Any if default is None or default is REQUIRED else type(default)
        options[name] = Option(name, hints.get(name, guess), default, documented.get(name, ""))
    return options


def load_object(path: str, kind: str) -> Any:
    """Return the object that "package.module:Name" or "path/to/file.py:Name" names; messages call it `kind`.

    Modules are also looked up in the working directory, as by `python -m`. Raises UserError if there is no
    such file, module or name, or if it names neither a class nor a function.
    """
    place, _, name = path.rpartition(":")
    module = _load_file(_file(place), kind) if place.endswith(".py") else _import(place, kind)
    try:
        found = getattr(module, name)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        # Rather what the file defines than what it imports.
        own = [key for key in public if getattr(vars(module)[key], "__module__", "") == module.__name__]
        raise UserError(unknown_name(f"name in {place}", name, own or public)) from None
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        raise UserError(f"a {kind} must be a class or a function; found a {type(found).__name__}, '{path}'.")
    return found


def locate(path: str) -> Path | None:
    """Return the file that `load_object(path)` would run, or None if none is found; imports nothing."""
    place = path.rpartition(":")[0]
    if place.endswith(".py"):
        return _file(place)
    _look_here()
    origin, search = None, None
    for name in place.split("."):
        spec = PathFinder.find_spec(name, search)
        if spec is None:
            return None
        origin, search = spec.origin, spec.submodule_search_locations
    return Path(origin).resolve() if origin else None


def _look_here() -> str:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # last, so that its files cannot hide installed packages
    return here


def _import(place: str, kind: str) -> Any:
    if not all(place.split(".")):
        raise UserError(f"a {kind} is named as package.module:Name or file.py:Name; found '{place}:...'.")
    here = _look_here()
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise  # the module exists, but something that it imports is missing
        raise UserError(
            f"no module '{place}' for the {kind} '{place}:...': neither installed nor in '{here}'. "
            "Start from the folder that holds it, or add that folder to PYTHONPATH."
        ) from None


def _file(place: str) -> Path:
    try:
        return Path(place).expanduser().resolve()
    except RuntimeError as error:
        raise UserError(f"'{place}': the home directory is unknown. Write the whole path.") from error


def _load_file(path: Path, kind: str) -> Any:
    if not path.is_file():
        raise UserError(f"no file '{path}' for the {kind}.")
    # With the path in its name: files of one name in two folders are two modules.
    name = f"{FILE_MODULE}{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # else the next call would return the incomplete module
        raise
    return module


def _documented(docstring: str) -> dict[str, str]:
    """Return the entries of a docstring's `Args:` section, with continuation lines joined."""
    lines = inspect.cleandoc(docstring).splitlines()
    if "Args:" not in lines:
        return {}
    entries: dict[str, str] = {}
    indent, name = 0, ""
    for line in lines[lines.index("Args:") + 1 :]:
        if line.strip() and not line.startswith(" "):
            break
        depth = len(line) - len(line.lstrip())
        entry = _ARGUMENT.fullmatch(line.strip())
        if entry and (not name or depth <= indent):
            indent, name = depth, entry["name"]
            entries[name] = entry["text"]
        elif name and line.strip():
            entries[name] += " " + line.strip()
    return entries
