"""Strict conversion of values to annotated types by pydantic, with messages for people.

Nothing is guessed: a bool is no int, 1000.5 and "3" are none either; an int is accepted for a float. Shell
and YAML turn text into values first (`from_text`, the YAML reader), Python hands over values.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import pydantic
import yaml
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from mtrl.errors import UserError, unknown_name

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

_NAMES = {
    float: "a finite number", int: "an integer", bool: "true or false", str: "text", type(None): "null",
    Any: "any value",
}  # fmt: skip
_LIMITS = {
    "greater_than": ("gt", "above"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"), "less_than_equal": ("le", "at most"),
}  # fmt: skip

C = TypeVar("C")


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, Field)
)
def settings(path: str = "") -> Callable[[type[C]], type[C]]:
    """Return a decorator: frozen, keyword-only, strictly checked dataclass whose mistakes are UserErrors.

    Args:
        path: what messages put before a field's name.
    """

    def decorate(plain: type[C]) -> type[C]:
        cls: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)(plain)
        checked = cls.__init__

        @functools.wraps(checked)
        def init(self: Any, **values: Any) -> None:
            try:
                checked(self, **values)
            except pydantic.ValidationError as error:
                raise _user_error(error.errors()[0], path, field_types(cls)) from None

        cls.__init__ = init
        return cls  # type: ignore[no-any-return]

    return decorate


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass, `Annotated` kept."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def convert(value: Any, annotation: Any, path: str) -> Any:
    """Return `value` as `annotation`; a list, all that YAML and JSON know, is taken for a tuple.

    Raises:
        UserError: any other value; names `path`, the rule and the value found.
    """
    if isinstance(value, list) and items_of(annotation) is not None:
        value = tuple(value)
    try:
        return _adapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        raise _user_error(error.errors()[0], path, annotation) from None


def from_text(text: str, annotation: Any) -> Any:
    """Return what a person who types `text` means: text where text is valid, else the value YAML reads."""
    members = _members(annotation)
    if type(None) in members and text.casefold() in ("none", "null"):
        return None
    try:
        return _adapter(annotation).validate_python(text)
    except pydantic.ValidationError:
        try:
            return yaml.load(text, YamlLoader)
        except yaml.YAMLError:
            return text


class YamlLoader(yaml.SafeLoader):
    """SafeLoader that reads 3e-4 as a number (YAML 1.1 takes it for text) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; PyYAML alone would silently keep the last of two equal keys."""
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"'{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def items_of(annotation: Any) -> Any:
    """Return the type of the items of a `tuple[X, ...]`, alone or in a union; None for anything else."""
    for kind in _members(annotation):
        if get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,):
            return get_args(kind)[0]
    return None


def found(value: Any) -> str:
    """Return how a message names `value`, its type included where it could be mistaken."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r} (text)" if isinstance(value, str) else repr(value)


def describe(annotation: Any) -> str:
    """Return what values `annotation` takes, in words."""
    members = _members(annotation)
    if len(members) > 1:
        return " or ".join(map(describe, members))
    (kind,) = members
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in (tuple, list):
        item = items_of(kind)
        return "a list of names" if item in (None, str) else f"a list, each {describe(item)}"
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        return "a mapping 'key: value'"
    return _NAMES.get(kind, f"of type {getattr(kind, '__name__', kind)}")


def label(annotation: Any) -> str:
    """Return what `--help` shows in place of a value."""
    members = _members(annotation)
    if len(members) > 1:
        return "|".join(map(label, members))
    (kind,) = members
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    item = items_of(kind)
    if item is not None:
        return f"{label(item)} [{label(item)} ...]"
    names = {type(None): "None", float: "FLOAT", int: "INT", str: "TEXT", bool: "BOOL"}
    return names.get(kind, "YAML")


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type itself, without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(inner for member in get_args(annotation) for inner in _members(member))
    return (annotation,)


@functools.lru_cache(maxsize=256)
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation, config=None if dataclasses.is_dataclass(annotation) else STRICT)
    except PydanticSchemaGenerationError:
        return TypeAdapter(Any)  # a class of the user's own: it checks its argument itself


def _user_error(error: Any, path: str, expected: Any) -> UserError:
    """Return the message for pydantic's first complaint; `expected` is an annotation or a field's by name."""
    if error["type"] == "value_error" and isinstance(error["ctx"]["error"], UserError):
        mistake: UserError = error["ctx"]["error"]
        return mistake
    if isinstance(expected, dict) and error["loc"]:
        name = str(error["loc"][0])
        if name not in expected:
            return UserError(unknown_name("argument", path + name, [path + key for key in expected]))
        path, expected = path + name, expected[name]
    value = error["input"]
    if error["type"] in _LIMITS:
        key, words = _LIMITS[error["type"]]
        bound = error["ctx"][key]
        rule = "positive" if (key, bound) in (("gt", 0), ("ge", 1)) else f"{words} {bound:g}"
        return UserError(f"{path} must be {rule}; found {value!r}.")
    if error["type"] == "too_short":
        return UserError(f"{path} must name at least one; found none.")
    choices = [
        choice
        for member in _members(expected)
        if get_origin(member) is Literal
        for choice in get_args(member)
        if isinstance(choice, str)
    ]
    if choices and isinstance(value, str):
        return UserError(unknown_name(f"value for {path}", value, choices))
    return UserError(f"{path} must be {describe(expected)}; found {found(value)}.{_hint(value, expected)}")


def _hint(value: Any, annotation: Any) -> str:
    members = _members(annotation)
    if int in members and isinstance(value, float) and value.is_integer():
        return f" Write {int(value)}."
    if type(None) in members and value in ("None", "none"):
        return " Write null."
    return ""
