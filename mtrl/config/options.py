"""Options of exchangeable parts, read from the arguments of their classes: nothing lists them."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from mtrl.config.values import convert, found
from mtrl.errors import UserError, unknown_name

REQUIRED = inspect.Parameter.empty

_ARGUMENT = re.compile(r"(?P<name>\w+)(?: \([^)]*\))?:\s*(?P<text>.*)")


class Option(NamedTuple):
    """One named, typed value with its default (or REQUIRED) and its meaning."""

    name: str
    annotation: Any
    default: Any
    help: str


def options_of(part: Any, given: Collection[str]) -> dict[str, Option]:
    """Return the arguments of a class or function, without those in `given`, by name.

    Types are the annotations, else that of the default; the meaning is the argument's entry under `Args:` in
    the docstring.

    Raises:
        UserError: an annotation names something that its module does not know.
    """
    made_by: Any = part.__init__ if inspect.isclass(part) else part
    try:
        hints = typing.get_type_hints(made_by, include_extras=True)
    except NameError as error:
        raise UserError(f"the types of {part.__name__}'s arguments cannot be read: {error}.") from error
    documented: dict[str, str] = {}
    for owner in reversed(part.__mro__) if inspect.isclass(part) else (part,):
        # A subclass that inherits __init__ may still document the arguments itself.
        documented |= _documented(owner.__doc__ or "")
    options = {}
    for name, parameter in inspect.signature(part).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variadic or parameter.kind is parameter.POSITIONAL_ONLY or name in given:
            continue
        default = parameter.default
        guess = Any if default is None or default is REQUIRED else type(default)
        options[name] = Option(name, hints.get(name, guess), default, documented.get(name, ""))
    return options


def complete(
    values: Mapping[str, Any], options: Mapping[str, Option], owner: str, path: str
) -> dict[str, Any]:
    """Return every option with its value from `values`, converted, or its default.

    Args:
        values: the options that are given.
        options: what `options_of` returned.
        owner: whose options they are, for messages: "method 'cagrad'".
        path: where the values come from, for messages: "method_options".

    Raises:
        UserError: an unknown option (the nearest one is given), a value of another type, a missing value.
    """
    for key, value in values.items():
        if not options:
            raise UserError(f"{path}: {owner} has no options; found '{key}' = {found(value)}.")
        if key not in options:
            raise UserError(unknown_name(f"option of {owner}", str(key), options))
    completed = {}
    for name, option in options.items():
        if name in values:
            completed[name] = convert(values[name], option.annotation, f"{path}.{name}")
        elif option.default is REQUIRED:
            raise UserError(f"{path}: {owner} needs a value for its option '{name}'; found none.")
        else:
            completed[name] = option.default
    return completed


def _documented(docstring: str) -> dict[str, str]:
    """Return the entries of a docstring's `Args:` section, continuation lines joined."""
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
