"""Flags of the command lines: dataclasses parsed by tyro, with messages of one line and nearest names."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from mtrl.config.method_options import MethodSpec, method_options
from mtrl.config.presets import preset_names
from mtrl.config.schema import Config
from mtrl.errors import UserError, unknown_name

_REGISTRY = tyro.constructors.ConstructorRegistry()


def train_flags(base: Config, preset: str | None) -> Any:
    """Return an instance of a subclass of Config with the values of `base` and the flags Config lacks.

    The options of the method of `base` are typed fields of `method_options`; `preset`, `run_dir` and `resume`
    are added. The class does not check ranges: that is done once, on the final values.
    """
    method = method_options()[base.method]
    values = {option.name: option.default for option in method.options} | dict(base.method_options)
    options_type: Any = dataclasses.make_dataclass(
        "MethodOptions",
        [
            (option.name, Annotated[option.type, tyro.conf.arg(help=option.help)], values[option.name])
            for option in method.options
        ],
        frozen=True,
        kw_only=True,
    )
    methods = "{" + ",".join(method_options()) + "}"
    presets = "{" + ",".join(preset_names()) + "}|FILE.yaml"
    of_method = tyro.conf.arg(name="method", help=f"{method.name}: {method.summary}")
    extra: list[tuple[str, Any, Any]] = [
        ("method", _described(str, "Gradient combiner; all are listed at the end.", methods), base.method),
        ("method_options", Annotated[options_type, of_method], options_type(**values)),
        ("preset", _described(str | None, "Values to start from, a name in configs/.", presets), preset),
        ("run_dir", _described(Path | None, "Default: runs/TASKS/METHOD/seedK-TIME."), None),
        (
            "resume",
            _described(Path | None, "Run directory to continue; takes only --steps and --device."),
            None,
        ),
    ]
    flags_type: Any = dataclasses.make_dataclass(
        "TrainFlags",
        extra,
        bases=(Config,),
        namespace={"__post_init__": lambda self: None},
        frozen=True,
        kw_only=True,
    )
    added = {name for name, _, _ in extra}
    return flags_type(**{name: value for name, value in vars(base).items() if name not in added})


def flag_values(flags: Any) -> dict[str, Any]:
    """Return what `train_flags` added to or took from Config as one layer for `build_config`."""
    return {
        field.name: vars(value) if dataclasses.is_dataclass(value := getattr(flags, field.name)) else value
        for field in dataclasses.fields(Config)
    }


def parse(flags_type: Any, arguments: Sequence[str], default: Any = None) -> Any:
    """Return `flags_type` built from `arguments`; raises UserError for what tyro refuses."""
    options = {} if default is None else {"default": default}
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(flags_type, args=list(arguments), registry=_REGISTRY, **options)
    except SystemExit:
        raise UserError(_first_paragraph(box.getvalue())) from None


def print_help(
    flags_type: Any, default: Any = None, description: str | None = None, epilogue: str = ""
) -> None:
    """Print every flag with its meaning and default, and below them the epilogue."""
    options = {} if default is None else {"default": default}
    prog = Path(sys.argv[0]).name
    try:
        with contextlib.suppress(SystemExit):
            tyro.cli(
                flags_type, args=["--help"], prog=prog, description=description, registry=_REGISTRY, **options
            )
        print(epilogue, flush=True)
    except BrokenPipeError:
        # `--help | head` closes the pipe early; without this the interpreter's last flush fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def given(arguments: Sequence[str]) -> list[str]:
    """Return the flags among `arguments`, with dashes for underscores and without values."""
    return [_flag(text[2:].partition("=")[0]) for text in arguments if text.startswith("--")]


def wants_help(arguments: Sequence[str]) -> bool:
    """Return whether `arguments` ask for help."""
    return "-h" in arguments or "--help" in arguments


def peek(arguments: Sequence[str], flag: str) -> str | None:
    """Return the last value of `flag`; None where it has none, which the parser then reports."""
    value = None
    for text, following in itertools.pairwise([*arguments, "--"]):
        if text == flag and not following.startswith("--"):
            value = following
        elif text.startswith(flag + "="):
            value = text.partition("=")[2]
    return value


def check_flags(arguments: Sequence[str], flags_type: Any, method: MethodSpec | None = None) -> None:
    """Raise UserError for the first flag that `flags_type` lacks, with the nearest one that it has."""
    known = list(_known_flags(flags_type, ""))
    for flag in given(arguments):
        if flag in known:
            continue
        if method is not None and flag.startswith("--method."):
            options = [_flag(option.name)[2:] for option in method.options]
            if not options:
                raise UserError(f"method '{method.name}' has no options; found {flag}.")
            raise UserError(
                unknown_name(f"option of method '{method.name}'", flag.partition(".")[2], options)
            )
        near = _nearest(flag, known)
        hint = f" Did you mean '{near}'?" if near else ""
        raise UserError(f"unknown flag '{flag}'.{hint} --help lists all flags.")


def methods_overview(width: int) -> str:
    """Return the text on every method and its options with types and defaults, `width` columns wide."""
    lines = ["methods and their options:"]
    for method in method_options().values():
        lines += textwrap.wrap(
            f"{method.name}: {method.summary}", width, initial_indent="  ", subsequent_indent="    "
        )
        for option in method.options:
            name = _flag(f"method.{option.name}")
            usage = f"{name} {_type_label(option.type)}"
            if option.type is bool:
                usage = f"{name}, {_flag(f'method.no-{option.name}')}"
            text = f"{usage} (default: {option.default})  {option.help}"
            lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 10)
    return "\n".join(lines)


def _described(kind: Any, text: str, metavar: str | None = None) -> Any:
    return Annotated[kind, tyro.conf.arg(help=text, metavar=metavar)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _nearest(flag: str, known: Sequence[str]) -> str | None:
    """Return the flag nearest to `flag`: by its last part alone (--gamma) if it names no section."""
    last = {name.rpartition(".")[2].removeprefix("--"): name for name in reversed(known)}
    candidates = {name: name for name in known} | (last if "." not in flag else {})
    exact = candidates.get(flag.removeprefix("--"))
    near = difflib.get_close_matches(flag, candidates, n=1)
    return exact or (candidates[near[0]] if near else None)


def _known_flags(section: Any, prefix: str) -> Iterator[str]:
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        kind = hints[field.name]
        name = "method" if field.name == "method_options" else field.name
        if dataclasses.is_dataclass(kind):
            yield from _known_flags(kind, f"{prefix}{name}.")
        else:
            yield _flag(prefix + name)
            if kind is bool:
                yield _flag(f"{prefix}no-{name}")


def _first_paragraph(box: str) -> str:
    """Return the message of tyro's boxed error, which stands between its title and the next rule."""
    lines = [line.strip("│╭╮╰╯|+ ") for line in box.splitlines()[1:]]
    paragraph: list[str] = []
    for line in lines:
        is_rule = set(line) <= {"─", "-"}
        if is_rule and paragraph:
            break
        paragraph += [] if is_rule else [line]
    return " ".join(paragraph).removeprefix("Error parsing ").removesuffix(".") + ". See --help."


def _type_label(kind: Any) -> str:
    if kind is type(None):
        return "None"
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    members = get_args(kind)
    return "|".join(map(_type_label, members)) if members else str(kind.__name__).upper()


@_REGISTRY.primitive_rule
def _number(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Parse int, float and each `| None` with messages for people instead of Python's."""
    names = {int: "an integer", float: "a number"}
    members = [member for member in get_args(info.type) or (info.type,) if member is not type(None)]
    optional = len(members) < len(get_args(info.type))
    if len(members) != 1 or members[0] not in names:
        return None
    kind: Any = members[0]

    def from_text(texts: list[str]) -> Any:
        if optional and texts[0].lower() in ("none", "null"):
            return None
        try:
            return kind(texts[0])
        except ValueError:
            expected = names[kind] + (" or None" if optional else "")
            raise ValueError(f"expected {expected}, found '{texts[0]}'") from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=_type_label(info.type),
        instance_from_str=from_text,
        is_instance=lambda value: type(value) in (kind, int) or (optional and value is None),
        str_from_instance=lambda value: [str(value)],
    )
