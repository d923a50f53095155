"""Strict conversion of values read from YAML or Python to the annotated types of configuration fields."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mtrl.errors import UserError, unknown_name

# YAML 1.1 takes a number with an exponent but without a dot, such as 3e-4, for text.
_EXPONENT_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_NAMES = {float: "a finite number", int: "an integer", bool: "true or false", str: "text", NoneType: "null"}


def convert(value: Any, annotation: Any, path: str) -> Any:
    """Return `value` as `annotation`: float, int, bool, str, Literal, tuple[str, ...], Mapping or a union.

    An int is accepted for a float, a list for a tuple; a bool is no int, and nothing else is coerced.

    Raises:
        UserError: any other value; names `path`, the expected type and the value found.
    """
    for option in _members(annotation):
        accepted, converted = _accept(value, option)
        if accepted:
            return converted
    choices = [choice for choice in _choices(annotation) if isinstance(choice, str)]
    if choices and isinstance(value, str):
        raise UserError(unknown_name(f"value for {path}", value, choices))
    hint = _hint(value, annotation)
    raise UserError(f"{path} must be {_describe(annotation)}; found {found(value)}.{hint}")


def as_mapping(value: Any, path: str) -> Mapping[str, Any]:
    """Return `value` if it is a mapping; raises UserError naming `path` otherwise."""
    if not isinstance(value, Mapping):
        raise UserError(f"{path} must be a mapping 'key: value'; found {found(value)}.")
    return value


def found(value: Any) -> str:
    """Return how a message names `value`, its type included where it could be mistaken."""
    if isinstance(value, bool | NoneType):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r} (text)" if isinstance(value, str) else repr(value)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _accept(value: Any, kind: Any) -> tuple[bool, Any]:
    origin = get_origin(kind)
    if kind is NoneType:
        return value is None, None
    if kind is float:
        number = _number(value)
        return number is not None, number
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind)), value
    if origin is tuple:
        fits = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        return fits, tuple(value) if fits else None
    return (type(value) is kind if origin is None else isinstance(value, origin)), value


def _number(value: Any) -> float | None:
    if type(value) in (int, float) or (isinstance(value, str) and _EXPONENT_NUMBER.fullmatch(value)):
        number = float(value)
        return number if math.isfinite(number) else None
    return None


def _choices(annotation: Any) -> Iterator[Any]:
    for member in _members(annotation):
        yield from get_args(member) if get_origin(member) is Literal else ()


def _hint(value: Any, annotation: Any) -> str:
    members = _members(annotation)
    number = _number(value)
    if int in members and number is not None and number.is_integer():
        return f" Write {int(number)}."
    if NoneType in members and value in ("None", "none"):
        return " Write null."
    if get_origin(annotation) is tuple and isinstance(value, str):
        return f" Write [{value}]."
    return ""


def _describe(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return "a list of names"
    members = _members(annotation)
    return " or ".join(map(_describe, members)) if len(members) > 1 else _NAMES.get(annotation, "a mapping")
