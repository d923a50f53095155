"""Presets and the strict way from nested mappings to a Config. Imports no torch.

Layers are merged from weak to strong: dataclass defaults, a preset (with those it extends), flags. A preset
may hold `method_defaults: {cagrad: {c: 0.5}}`, options that apply whenever that method is chosen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from mtrl.config.conversion import as_mapping, convert, found
from mtrl.config.method_options import method_options
from mtrl.config.schema import Config
from mtrl.envs.metaworld.tasks import resolve_tasks
from mtrl.errors import UserError, unknown_name

_PACKAGE = Path(__file__).resolve().parent.parent
_METHOD_DEFAULTS = "method_defaults"
_SUFFIXES = (".yaml", ".yml")


def presets_folder() -> Path:
    """Return the presets' folder: `configs/` of a checkout, `mtrl/_presets/` of an installed package."""
    installed = _PACKAGE / "_presets"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def preset_names() -> tuple[str, ...]:
    """Return the names that `--preset` takes, in alphabetical order."""
    return tuple(sorted(path.stem for path in presets_folder().glob("*.yaml")))


def load_preset(name: str) -> dict[str, Any]:
    """Return a preset as a nested dict, the presets it `extends` merged in; only what they set.

    A name that ends in .yaml is the path of a file of the user's own. It may extend a preset, or a file given
    relative to its own folder.

    Raises:
        UserError: no such preset; not YAML; unknown key, method or option (nearest name given); wrong type.
    """
    return _load_chain(name, ())


def build_config(*layers: Mapping[str, Any]) -> Config:
    """Return the Config of `layers` merged over the dataclass defaults, the last layer strongest.

    Options of a method are dropped where a stronger layer chooses another method.

    Raises:
        UserError: unknown key, method, option or task (nearest name given); wrong type; value out of range.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = _merge(values, _validate(layer))
    method = values.get("method", Config.method)
    options = values.pop(_METHOD_DEFAULTS, {}).get(method, {}) | dict(values.get("method_options", {}))
    values["method_options"] = _method_section(method, options, "method_options")
    config = Config(**_construct(values, Config))
    if config.suite == "metaworld":
        resolve_tasks(config.tasks)
    return config


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return every value of `config` as plain nested dicts and lists, ready for YAML or JSON."""
    return {name: _plain(value) for name, value in vars(config).items()}


def save_config(config: Config, path: str | Path) -> None:
    """Write the complete `config` as YAML; the file appears whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            yaml.safe_dump(config_to_dict(config), file, sort_keys=False, allow_unicode=True)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_config(path: str | Path) -> Config:
    """Return the Config that `save_config` wrote.

    Raises:
        UserError: no such file, not YAML, or not a valid configuration.
    """
    values = _read_yaml(Path(path))
    with _named(path):
        return build_config(values)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {name: _plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Put the file's path in front of the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"'{name}' is given twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        # The loader derives from SafeLoader: plain data only.
        values = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict | None):
        raise UserError(f"{path} must hold a mapping 'key: value'; found {found(values)}.")
    return values or {}


def _load_chain(name: str, children: tuple[str, ...]) -> dict[str, Any]:
    if name in children:
        raise UserError(f"presets extend each other in a circle: {' -> '.join((*children, name))}.")
    if name.endswith(_SUFFIXES):
        path = Path(name)
    elif name in preset_names():
        path = presets_folder() / f"{name}.yaml"
    else:
        raise UserError(unknown_name("preset", name, preset_names()) + " A file of your own ends in .yaml.")
    values = _read_yaml(path)
    with _named(path):
        parent = convert(values.pop("extends", None), str | None, "extends")
        values = _validate(values)
        if parent is not None:
            parent = str(path.parent / parent) if parent.endswith(_SUFFIXES) else parent
            values = _merge(_load_chain(parent, (*children, name)), values)
        if "method_options" in values:
            method = values.get("method", Config.method)
            values["method_options"] = _method_section(method, values["method_options"], "method_options")
    return values


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    before = base.get("method", Config.method)
    if layer.get("method", before) != before:
        merged.pop("method_options", None)
    for key, value in layer.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _validate(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return `layer` with known keys only, each value converted; `method_options` wait for the method."""
    rest = dict(layer)
    defaults = as_mapping(rest.pop(_METHOD_DEFAULTS, {}), _METHOD_DEFAULTS)
    values = _section(rest, Config, "")
    if "method" in values:
        _check_method(values["method"])
    if defaults:
        values[_METHOD_DEFAULTS] = {
            method: _method_section(method, options, f"{_METHOD_DEFAULTS}.{method}")
            for method, options in defaults.items()
        }
    return values


def _check_method(method: str) -> None:
    if method not in method_options():
        raise UserError(unknown_name("method", str(method), method_options()))


def _method_section(method: str, options: Any, path: str) -> dict[str, Any]:
    _check_method(method)
    types = {option.name: option.type for option in method_options()[method].options}
    converted = {}
    for key, value in as_mapping(options, path).items():
        if not types:
            raise UserError(f"{path}: method '{method}' has no options; found '{key}'.")
        if key not in types:
            raise UserError(unknown_name(f"option of method '{method}'", str(key), types))
        converted[key] = convert(value, types[key], f"{path}.{key}")
    return converted


def _section(values: Mapping[str, Any], section: Any, prefix: str) -> dict[str, Any]:
    types = get_type_hints(section)
    converted = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in types:
            raise UserError(_unknown_key(path, [prefix + name for name in types]))
        if dataclasses.is_dataclass(types[key]):
            converted[key] = _section(as_mapping(value, path), types[key], path + ".")
        else:
            converted[key] = convert(value, types[key], path)
    return converted


def _unknown_key(path: str, valid: list[str]) -> str:
    leaf = path.rpartition(".")[2]
    elsewhere = [name for name in _key_paths(Config, "") if name.rpartition(".")[2] == leaf]
    if not elsewhere:
        return unknown_name("key", path, valid)
    return f"unknown key '{path}'. Did you mean '{elsewhere[0]}'? Valid: {', '.join(sorted(valid))}."


def _key_paths(section: Any, prefix: str) -> Iterator[str]:
    for name, kind in get_type_hints(section).items():
        if dataclasses.is_dataclass(kind):
            yield from _key_paths(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _construct(values: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """Return keyword arguments of `section`, its nested dataclasses built."""
    types = get_type_hints(section)
    return {
        key: types[key](**_construct(value, types[key])) if dataclasses.is_dataclass(types[key]) else value
        for key, value in values.items()
    }
