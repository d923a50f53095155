"""Flags for fields and plug-in options: tyro shows and splits them, `config.values` converts and checks them.

tyro gets all values as text, so that one place checks values from the shell, YAML and Python, with the same
messages. tyro draws its own errors (a missing value, a stray word) as a box, of which we keep one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_origin

import tyro

from mtrl.cli import HelpShown
from mtrl.config.values import field_types, from_text, items_of, label
from mtrl.errors import UserError, did_you_mean
from mtrl.registry import REQUIRED, Option

F = TypeVar("F")


class _Unset:
    """Default of a flag that has no value of its own; `parse` leaves out such a flag if it is not given."""

    def __str__(self) -> str:
        return "not-set"


UNSET = _Unset()


class Flag(NamedTuple):
    """One flag; `flag` is its name without dashes and without the group's name, "" if it is positional."""

    flag: str
    option: Option
    metavar: str


class Group(NamedTuple):
    """Flags `--FLAG.name`; their values become one mapping under `key`."""

    key: str
    flag: str
    help: str
    members: tuple[Flag | Group, ...]


Members = Sequence[Flag | Group]


def option_flag(option: Option, flag: str | None = None, metavar: str | None = None) -> Flag:
    """Return the flag of an option, by default with the option's own name."""
    return Flag(option.name if flag is None else flag, option, metavar or label(option.annotation))


def fields_of(cls: Any, values: Any = None) -> list[Option]:
    """Return the fields of a `settings` dataclass as options, with the values of `values` as defaults."""
    options = []
    for name, annotation in field_types(cls).items():
        default = getattr(cls if values is None else values, name, REQUIRED)
        options.append(Option(name, annotation, default, cls.__pydantic_fields__[name].description or ""))
    return options


def parse(members: Members, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the value of every flag, nested by group; the default, unless UNSET, if a flag is not given.

    Raises:
        UserError: an unknown flag (the nearest one is given), a missing or empty value, a stray word, a list
            of values whose flag is given twice (all but the last would be dropped).
    """
    _check_flags(arguments, members)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            parsed = tyro.cli(_tyro_type(members), args=list(arguments))
    except SystemExit:
        message = _first_paragraph(box.getvalue())
        strays = re.match(r"Unrecognized options: (?!-)(.*)\. See --help\.", message)
        empty = re.match(r"Missing value for argument '(.*)'\.", message)
        if strays:
            message = f"expected a flag before '{strays[1]}', as in --method cagrad. See --help."
        elif empty:
            message = f"expected a value after {empty[1]}; found none. See --help."
        raise UserError(message) from None
    return _values(parsed, members)


def print_help(members: Members, description: str, epilogue: str = "") -> None:
    """Print every flag with its meaning and default, and below them the epilogue."""
    try:
        with contextlib.suppress(SystemExit):
            tyro.cli(
                _tyro_type(members), args=["--help"], prog=Path(sys.argv[0]).name, description=description
            )
        print(epilogue, end="\n" if epilogue else "", flush=True)
    except BrokenPipeError:
        # `--help | head` closes the pipe early; without this the last flush of the interpreter fails too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_command(cls: type[F], arguments: Sequence[str], positional: str | None = None) -> F:
    """Return a command's flags, the fields of a `settings` class.

    Raises:
        HelpShown: `arguments` ask for help, and it was printed.
        UserError: as `parse`.
    """
    members = [
        option_flag(option, "", "PATH") if option.name == positional else option_flag(option)
        for option in fields_of(cls)
    ]
    if wants_help(arguments):
        print_help(members, inspect.cleandoc(cls.__doc__ or ""))
        raise HelpShown
    return cls(**parse(members, arguments))


def given(arguments: Sequence[str]) -> list[str]:
    """Return the flags in `arguments`, with dashes for underscores and without values."""
    return [_dashed(text[2:].partition("=")[0]) for text in arguments if text.startswith("--")]


def wants_help(arguments: Sequence[str]) -> bool:
    """Return whether `arguments` ask for help."""
    return "-h" in arguments or "--help" in arguments


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """Return the last value of `flag`; None if it has none, which the parser reports later."""
    value = None
    for text, following in itertools.pairwise([*arguments, "--"]):
        name, equals, attached = text.partition("=")
        if text.startswith("--") and _dashed(name[2:]) == flag:
            if equals:
                value = attached
            elif not following.startswith("--"):
                value = following
    return value


def _tyro_type(members: Members, name: str = "Flags") -> Any:
    """Return a dataclass for tyro: bool and tuple fields keep their type, all others are text."""
    fields: list[tuple[str, Any, Any]] = []
    for member in members:
        if isinstance(member, Group):
            inner = _tyro_type(member.members, member.key)
            about = tyro.conf.arg(name=member.flag, help=member.help)
            fields.append((member.key, Annotated[inner, about], dataclasses.field(default_factory=inner)))
            continue
        option, kind = member.option, _kind(member.option.annotation)
        default: Any = tyro.MISSING if option.default is REQUIRED else option.default
        if kind is str and option.default is not REQUIRED:
            default = str(option.default)
        elif kind is not bool and option.default is not REQUIRED:
            default = _words(option.default)
        metavar = None if kind is bool else member.metavar
        about = tyro.conf.arg(name=member.flag or None, help=option.help, metavar=metavar)
        place = () if member.flag else (tyro.conf.Positional,)
        fields.append((option.name, Annotated[kind, about, *place], default))
    return dataclasses.make_dataclass(name, fields, kw_only=True)


def _kind(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _kind(annotation.__origin__)
    if annotation is bool:
        return bool
    names: Any = tuple[str, ...]
    return names if items_of(annotation) is not None and get_origin(annotation) is tuple else str


def _words(default: Any) -> tuple[str, ...]:
    """Return the default of a flag of several words as text, which is what tyro has for all values."""
    if default is UNSET or default is REQUIRED:
        return (str(UNSET),)
    return tuple(map(str, default))


def _values(parsed: Any, members: Members) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for member in members:
        if isinstance(member, Group):
            values[member.key] = _values(getattr(parsed, member.key), member.members)
            continue
        option = member.option
        value = getattr(parsed, option.name)
        item = items_of(option.annotation)
        if isinstance(value, tuple) and value == _words(option.default):
            value = option.default
        elif isinstance(value, tuple) and item is not None:
            value = tuple(from_text(text, item) if isinstance(text, str) else text for text in value)
        elif isinstance(value, str):
            value = option.default if value == str(option.default) else from_text(value, option.annotation)
        if value is not UNSET:
            values[option.name] = value
    return values


def _check_flags(arguments: Sequence[str], members: Members) -> None:
    for before, text in itertools.pairwise(("", *arguments)):
        flag, equals, value = text.partition("=")
        if not text or (text.startswith("--") and equals and not value):
            after = flag or before.partition("=")[0]
            place = f" after {after}" if after.startswith("--") else ""
            raise UserError(f"expected a value{place}; found an empty one. Is a shell variable not set?")
    known = dict(_known_flags(members, ""))
    flags_given = given(arguments)
    for flag in flags_given:
        if known.get(flag) is tuple and flags_given.count(flag) > 1:
            times = flags_given.count(flag)
            raise UserError(f"{flag} is given {times} times; write all its values after one {flag}.")
        if flag not in known:
            options = list(dict(_known_flags([m for m in members if isinstance(m, Group)], "")))
            section = flag.rpartition(".")[0]
            chosen = peek(arguments, section) or _defaults(members).get(section)
            raise UserError(_unknown_flag(flag, list(known), options, chosen))


def _defaults(members: Members) -> dict[str, str]:
    """Return the defaults that are names, of flags on the first level."""
    flags = [member for member in members if not isinstance(member, Group) and member.flag]
    return {_dashed(m.flag): m.option.default for m in flags if isinstance(m.option.default, str)}


def _unknown_flag(flag: str, known: Sequence[str], options: Sequence[str], chosen: str | None) -> str:
    """Return the message for an unknown flag; without a dot, it is also compared with last parts of names."""
    section, dot, option = flag.rpartition(".")
    if dot and section in known:
        value = f" {chosen}" if chosen else ""
        own = {name.rpartition(".")[2]: name for name in options if name.startswith(f"{section}.")}
        if not own:
            return f"{section}{value} has no options; found {flag}."
        if not did_you_mean(option, own, cutoff=0.6):
            return f"{section}{value} has the options {', '.join(own.values())}; found {flag}."
    last = {name.rpartition(".")[2].removeprefix("--"): name for name in reversed(known)}
    candidates = {name: name for name in known} | ({} if dot else last)
    leaf = flag.removeprefix("--")
    turned = "--" + ".".join(reversed(leaf.split("-")))  # --critic-method: --method.critic
    if turned in known:
        return f"unknown flag '{flag}'. Did you mean '{turned}'? --help lists all flags."
    hint = did_you_mean(leaf if leaf in candidates else flag, candidates, cutoff=0.6)
    ends = [name for name in known if name.endswith(f"-{leaf}")]  # --lr: --sac.actor-lr, --sac.critic-lr, ...
    if not hint and ends:
        hint = f" Did you mean {' or '.join(ends)}?"
    return f"unknown flag '{flag}'.{hint} --help lists all flags."


def _known_flags(members: Members, prefix: str) -> Iterator[tuple[str, type]]:
    """Yield each flag with bool, str or tuple, the kind of its value."""
    for member in members:
        name = prefix + member.flag
        if isinstance(member, Group):
            yield from _known_flags(member.members, f"{name}.")
        elif member.flag:
            kind = _kind(member.option.annotation)
            yield _dashed(name), get_origin(kind) or kind
            if kind is bool:
                head, dot, last = name.rpartition(".")
                yield _dashed(f"{head}{dot}no-{last}"), bool


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def _first_paragraph(box: str) -> str:
    """Return the message in tyro's boxed error: the text between its title and the next rule."""
    paragraph: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip("│╭╮╰╯|+ ")
        is_rule = set(text) <= {"─", "-"}
        if is_rule and paragraph:
            break
        paragraph += [] if is_rule else [text]
    return " ".join(paragraph).removesuffix(".") + ". See --help."
