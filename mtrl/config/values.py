"""Strict conversion of values to annotated types by pydantic, with readable messages.

A bool, 1000.5 or "3" is not accepted for an int; an int is accepted for a float. Text from the shell and from
YAML becomes a value first (`from_text`, `YamlLoader`).
"""

import dataclasses
import functools
import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
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

_MOST_VALUES = 100_000  # of a YAML document; a configuration has about a hundred

C = TypeVar("C")


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field, Field)
)
def settings(path: str = "") -> Callable[[type[C]], type[C]]:
    """Return a decorator for frozen, keyword-only, strictly checked dataclasses that raise UserErrors.

    Messages put `path` in front of a field's name; "--" makes flags of the names.
    """

    def decorate(plain: type[C]) -> type[C]:
        cls: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)(plain)
        checked = cls.__init__

        @functools.wraps(checked)
        def init(self: Any, **values: Any) -> None:
            types = field_types(cls)
            for name, value in values.items():  # a section may be given as a mapping of some of its settings
                if dataclasses.is_dataclass(types.get(name)) and isinstance(value, Mapping):
                    values[name] = types[name](**value)
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
    """Return `value` as `annotation`; a list, which is what YAML and JSON have, may stand for a tuple.

    Raises:
        UserError: a value of another type or out of range; names `path`, the rule and the value found.
    """
    try:
        if not _accepts(annotation, value):
            value = _with_tuples(value, annotation)
        return _adapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        raise _user_error(error.errors()[0], path, annotation) from None


def _with_tuples(value: Any, annotation: Any) -> Any:
    """Return `value` with a tuple for each list, at any depth, where the annotation wants one."""
    for kind in _members(annotation):
        outer, inner = get_origin(kind) or kind, get_args(kind)
        if outer is tuple and isinstance(value, list | tuple):
            kinds = inner[:1] * len(value) if inner[1:] == (Ellipsis,) else (*inner, *[Any] * len(value))
            return tuple(map(_with_tuples, value, kinds))
        if outer in (list, Sequence) and len(inner) == 1 and isinstance(value, list):
            return [_with_tuples(item, inner[0]) for item in value]
        if outer in (dict, Mapping) and len(inner) == 2 and isinstance(value, Mapping):
            return {key: _with_tuples(item, inner[1]) for key, item in value.items()}
    return value


def from_text(text: str, annotation: Any) -> Any:
    """Return the value of `text` from the shell: as YAML reads it, or `text` itself for a `str` or a choice.

    A number for an untyped option, or for `float | str`, is thus the same from the shell as from YAML.
    """
    members = _members(annotation)
    if type(None) in members and text.casefold() in ("none", "null"):
        return None
    try:
        value = yaml.load(text, YamlLoader)
    except yaml.YAMLError:
        return text
    others = [member for member in members if member not in (str, type(None))]
    if not _accepts(annotation, text) or any(_accepts(member, value) for member in others):
        return value
    return text


class YamlLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key that is given twice, and reads numbers as decimal.

    For YAML 1.1, 3e-4 and -.5 are text, 010 is eight and 1:30 is ninety. Here the first two are numbers and
    the last two text, which is refused where a number is due. Documents whose aliases unfold to very many
    values or contain themselves are refused too, and so is text that looks like a date or number but is not
    a valid one.
    """

    def get_single_node(self) -> Any:
        """Return the root of the document. Raises YAMLError, also for too many nested levels."""
        try:
            root = super().get_single_node()
            if root is not None and _values_in(root, {}) > _MOST_VALUES:
                raise yaml.YAMLError(f"its aliases unfold to more than {_MOST_VALUES:,} values")
        except RecursionError:
            raise yaml.YAMLError("too many nested levels") from None
        return root

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value. Raises YAMLError, also where PyYAML cannot convert the text: 2026-30-11, 0x_."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            raise yaml.MarkedYAMLError(
                problem=f"'{node.value!s:.60}' is no value ({error})", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; PyYAML would silently keep the last of two equal keys."""
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"'{key.value}' is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _values_in(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of values in a node with all aliases unfolded; infinity if it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted
        inner = () if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            inner = itertools.chain.from_iterable(node.value)
        known[id(node)] = 1 + sum(_values_in(item, known) for item in inner)
    return known[id(node)]


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$",
    "tag:yaml.org,2002:float": (
        r"[-+]?([0-9][0-9_]*(\.[0-9_]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?"
        r"|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
}
YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    YamlLoader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))


def items_of(annotation: Any) -> Any:
    """Return the item type of a `tuple[X, ...]`, alone or in a union; None for any other annotation."""
    for kind in _members(annotation):
        if get_origin(kind) is tuple and get_args(kind)[1:] == (Ellipsis,):
            return get_args(kind)[0]
    return None


def quoted(value: Any) -> str:
    """Return how a message shows `value`, with its type where that could be mistaken."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r} (text)" if isinstance(value, str) else repr(value)


def describe(annotation: Any) -> str:
    """Return in words which values `annotation` accepts."""
    members = _members(annotation)
    if len(members) > 1:
        return " or ".join(map(describe, members))
    (kind,) = members
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if (get_origin(kind) or kind) in (tuple, list):
        inner = get_args(kind)
        if len(inner) > 1 and inner[1] is not Ellipsis:
            return f"a list of {len(inner)}: {', '.join(map(describe, inner))}"
        return (
            "a list of names"
            if inner[:1] == (str,)
            else ", each ".join(["a list", *map(describe, inner[:1])])
        )
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
    """Return the members of a union, or the one type itself, without `Annotated`."""
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
        return TypeAdapter(Any)  # a user's class, which pydantic cannot check


def _accepts(annotation: Any, value: Any) -> bool:
    try:
        _adapter(annotation).validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


def _user_error(error: Any, path: str, expected: Any) -> UserError:
    """Return the message for pydantic's first error; `expected`: an annotation, or one per field by name."""
    if error["type"] == "value_error" and isinstance(error["ctx"]["error"], UserError):
        mistake: UserError = error["ctx"]["error"]
        return mistake
    if isinstance(expected, dict) and error["loc"]:
        name = str(error["loc"][0])
        if name not in expected:
            return UserError(unknown_name("argument", path + name, [path + key for key in expected]))
        # Of a flag the message shows what is typed: --cpus-per-trial.
        path, expected = path + (name.replace("_", "-") if path == "--" else name), expected[name]
    value = error["input"]
    if error["type"] in _LIMITS:
        key, words = _LIMITS[error["type"]]
        bound = error["ctx"][key]
        positive = (key, bound) == ("gt", 0) or ((key, bound) == ("ge", 1) and int in _members(expected))
        rule = "positive" if positive else f"{words} {bound:g}"
        return UserError(f"{path} must be {rule}; found {value!r}.")
    if error["type"] == "too_short":
        return UserError(f"{path} must name at least one; found none.")
    members, hint = _members(expected), ""
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if choices and isinstance(value, str):
        return UserError(unknown_name(f"value for {path}", value, map(str, choices)))
    if int in members and isinstance(value, float) and value.is_integer():
        hint = f" Write {int(value)}."
    elif type(None) in members and value in ("None", "none"):
        hint = " Write null."
    elif isinstance(value, bool) and (word := "on" if value else "off") in choices:  # for YAML 1.1 a bool
        hint = f" Write it in quotes: '{word}'."
    return UserError(f"{path} must be {describe(expected)}; found {quoted(value)}.{hint}")
