"""Hyper-parameters of every gradient combiner, read from the sources: `--help` must not wait for torch.

A method is one class in `mtrl/combiners/` with a literal `name`. Its options are the keyword-only arguments
of `__init__` except `num_tasks`; their meaning is taken from the `Args:` section of the class docstring.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional

_FOLDER = Path(__file__).resolve().parent.parent / "combiners"
_SCALARS: Mapping[str, Any] = {"float": float, "int": int, "bool": bool, "str": str}
_ARGUMENT = re.compile(r"(?P<name>\w+)(?: \([^)]*\))?:\s*(?P<text>.*)")


class OptionSpec(NamedTuple):
    """One hyper-parameter: `type` is float, int, bool, str, a Literal or one of these `| None`."""

    name: str
    type: Any
    default: Any
    help: str


class MethodSpec(NamedTuple):
    """One method: the name that `--method` takes, the first line of its docstring, its hyper-parameters."""

    name: str
    summary: str
    options: tuple[OptionSpec, ...]


class _Source(NamedTuple):
    """A class together with what is needed to read it: its file and that file's module-level constants."""

    path: Path
    node: ast.ClassDef
    constants: Mapping[str, ast.expr]


@functools.cache
def method_options() -> dict[str, MethodSpec]:
    """Return the specification of every method, by name in alphabetical order; imports no torch.

    Raises:
        TypeError: an argument of a combiner lacks a default, a literal default or a supported annotation.
    """
    return read_methods(_FOLDER)


def read_methods(folder: Path) -> dict[str, MethodSpec]:
    """Return the specifications of the combiner classes in `folder/*.py`; raises like `method_options`."""
    classes: dict[str, _Source] = {}
    for path in sorted(folder.glob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        constants = dict(filter(None, map(_assignment, module.body)))
        for node in module.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = _Source(path, node, constants)
    methods = []
    for source in classes.values():
        name = _literal_name(source.node)
        if name is not None:
            lines = (ast.get_docstring(source.node) or "").splitlines()
            methods.append(MethodSpec(name, lines[0] if lines else "", _options(source, classes)))
    return {method.name: method for method in sorted(methods)}


def _assignment(node: ast.stmt) -> tuple[str, ast.expr] | None:
    """Return name and value of `name = value` or `name: type = value`."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        return node.target.id, node.value
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, node.value
    return None


def _literal_name(node: ast.ClassDef) -> str | None:
    value = dict(filter(None, map(_assignment, node.body))).get("name")
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _options(source: _Source, classes: Mapping[str, _Source]) -> tuple[OptionSpec, ...]:
    owner, init = _find_init(source, classes)
    if init is None:
        return ()
    # A subclass that inherits __init__ may still document the arguments itself.
    documented = _documented(owner.node) | _documented(source.node)
    options = []
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        if argument.arg == "num_tasks":
            continue
        where = f"{owner.path.name}: argument '{argument.arg}' of {owner.node.name}"
        if argument.annotation is None or default is None:
            raise TypeError(f"{where} must have an annotation and a default, to become an option.")
        options.append(
            OptionSpec(
                argument.arg,
                _type(argument.annotation, owner, where),
                _default(default, owner, where),
                documented.get(argument.arg, ""),
            )
        )
    return tuple(options)


def _find_init(source: _Source, classes: Mapping[str, _Source]) -> tuple[_Source, ast.FunctionDef | None]:
    for statement in source.node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return source, statement
    for base in source.node.bases:
        name = base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
        if name in classes:
            owner, init = _find_init(classes[name], classes)
            if init is not None:
                return owner, init
    return source, None


def _type(node: ast.expr, source: _Source, where: str) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return _type(ast.parse(text, mode="eval").body, source, where)
        case ast.Name(id=name) if name in _SCALARS:
            return _SCALARS[name]
        case ast.Name(id=name) if name in source.constants:
            return _type(source.constants[name], source, where)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union(_type(left, source, where), _type(right, source, where))
        case ast.Subscript(value=ast.Name(id="Literal") | ast.Attribute(attr="Literal"), slice=inner):
            choices = ast.literal_eval(inner)
            return Literal[choices if isinstance(choices, tuple) else (choices,)]
    raise TypeError(
        f"{where} is annotated '{ast.unparse(node)}'; an option must be float, int, bool, str, Literal[...] "
        "or one of these | None."
    )


def _union(left: Any, right: Any) -> Any:
    return Optional[left if right is None else right] if None in (left, right) else left | right  # noqa: UP045


def _default(node: ast.expr, source: _Source, where: str) -> Any:
    if isinstance(node, ast.Name) and node.id in source.constants:
        node = source.constants[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise TypeError(f"{where} has the default '{ast.unparse(node)}'; it must be a literal.") from error


def _documented(node: ast.ClassDef) -> dict[str, str]:
    """Return the entries of the docstring's `Args:` section, continuation lines joined."""
    lines = (ast.get_docstring(node) or "").splitlines()
    if "Args:" not in lines:
        return {}
    found: dict[str, str] = {}
    indent, name = 0, ""
    for line in lines[lines.index("Args:") + 1 :]:
        if line.strip() and not line.startswith(" "):
            break
        depth = len(line) - len(line.lstrip())
        entry = _ARGUMENT.fullmatch(line.strip())
        if entry and (not name or depth <= indent):
            indent, name = depth, entry["name"]
            found[name] = entry["text"]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found
