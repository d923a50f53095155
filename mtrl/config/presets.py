"""Presets and stored configurations: nested mappings, merged into a Config. Imports no torch.

Layers from weak to strong: dataclass defaults, a preset (over the presets it `extends`), flags. A preset may
hold `method_defaults: {cagrad: {c: 0.5}}`, options that apply whenever that method is chosen.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mtrl.config.files import expand, write_file
from mtrl.config.schema import Config
from mtrl.config.values import YamlLoader, convert, field_types, quoted
from mtrl.errors import UserError, unknown_name

_PACKAGE = Path(__file__).resolve().parent.parent
_SUFFIXES = (".yaml", ".yml")
INCIDENTAL = (
    "device", "env.num_workers", "env.worker_niceness", "env.step_timeout", "env.max_restarts", "env.resume",
    "train.num_threads", "train.matmul_precision", "train.keep_checkpoints", "train.keep_best",
    "train.on_divergence", "train.sinks", "eval.envs_per_task",
)  # fmt: skip
"""Settings of machine, storage and display: runs that differ in nothing else are the same run."""
NOT_RECORDED = "not recorded"
OF_NETWORK = ("options", "actor_options", "critic_options")
"""Keys of `network` with options of its architecture: of both networks, then of one, which override them."""
_OF_ONE_NETWORK = ("critic_method", "actor_method")
"""Methods of one network; they override `method`."""


def owner_of(key: str) -> str | None:
    """Return the key that names the plug-in whose options `key` holds; None if `key` holds no options."""
    if not key.endswith("options"):
        return None
    return "architecture" if key in OF_NETWORK else key.removesuffix("_options")


def presets_folder() -> Path:
    """Return the presets' folder: `configs/` of a checkout, `mtrl/_presets/` of an installed package."""
    installed = _PACKAGE / "_presets"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def preset_names() -> tuple[str, ...]:
    """Return the names that `--preset` takes, in alphabetical order."""
    return tuple(sorted(path.stem for path in presets_folder().glob("*.yaml")))


def load_preset(name: str) -> dict[str, Any]:
    """Return the values that a preset and those it `extends` set, as a nested dict.

    A name that ends in .yaml is the path of a user's file. It may extend a preset, or a file given relative
    to its own folder.

    Raises:
        UserError: no such preset; not YAML; unknown key (nearest name given); wrong type or range.
    """
    return _load_chain(name, ())


def build_config(*layers: Mapping[str, Any]) -> Config:
    """Return the Config of `layers` merged over the dataclass defaults; the last layer is the strongest.

    A layer that names another method, suite or architecture drops the options of the former one. A layer that
    names `method` means both networks: it drops the methods that weaker layers chose for one of them.

    Raises:
        UserError: unknown key (nearest name given), wrong type, value out of range, conflicting values.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = _merge(values, _check(layer, Config, ""), Config)
    return Config(**values)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return every value of `config` as nested dicts and lists, ready for YAML or JSON."""
    return {name: _plain(value) for name, value in vars(config).items()}


def config_text(config: Config) -> str:
    """Return the complete `config` as YAML; raises UserError for a value that YAML cannot hold."""
    try:
        return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError as error:
        raise UserError(
            f"an option has a value that config.yaml cannot hold: {error.args[-1]!r}. Options are numbers, "
            "text, lists and mappings; a class, for instance, is named by a text."
        ) from None


def save_config(config: Config, path: str | Path) -> None:
    """Write the complete `config` as YAML, atomically."""
    write_file(Path(path), config_text(config).encode())


def load_config(path: str | Path) -> Config:
    """Return the Config that `save_config` wrote; raises UserError if it cannot be read."""
    values = _read_yaml(Path(path))
    with _named(path):
        return build_config(values)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one: {"sac": {"gamma": .99}} -> {"sac.gamma": .99}; lists become tuples."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = tuple(value) if isinstance(value, list) else value
    return result


def flat_config(config: Config) -> dict[str, Any]:
    """Return every value of `config` by its dotted key, plain as in YAML; lists become tuples."""
    return flat(config_to_dict(config))


def nested(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inverse of `flat`: {"sac.gamma": .99} -> {"sac": {"gamma": .99}}; values may be nested.

    Several mappings are merged, the last one is the strongest. None of them is written into.

    Raises:
        UserError: a key is given a value and used as a section, such as "method" and "method.c".
    """
    result: dict[str, Any] = {}
    for key, value in (item for mapping in settings for item in mapping.items()):
        for name in reversed(key.split(".")):
            value = {name: value}
        _lay_over(result, value)
    return result


def _lay_over(place: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key in place and isinstance(place[key], dict) != isinstance(value, Mapping):
            raise UserError(
                f"'{key}' is given a value and used as a section ('{key}.NAME'). Options of a method are in "
                "method_options."
            )
        if isinstance(value, Mapping):
            _lay_over(place.setdefault(key, {}), value)
        else:
            place[key] = value


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], but: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which two flat mappings differ -> both values; NOT_RECORDED where one lacks the key.

    Differences in the keys `but` do not count.
    """
    keys = dict.fromkeys((*first, *second))
    pairs = {
        key: (first.get(key, NOT_RECORDED), second.get(key, NOT_RECORDED)) for key in keys if key not in but
    }
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def is_same(first: Any, second: Any) -> bool:
    """Return whether two values of one type are written to a file alike; tuples are lists there."""
    first, second = _plain(first), _plain(second)
    return type(first) is type(second) and bool(first == second)


def _plain(value: Any) -> Any:
    # Numbers and arrays of NumPy, which this module does not import. Its classes have the method too.
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    if dataclasses.is_dataclass(value):
        return {name: _plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(map(_plain, value)) if isinstance(value, tuple | list) else value


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Put `path` in front of the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), YamlLoader)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict | None):
        raise UserError(f"{path} must hold a mapping 'key: value'; found {quoted(values)}.")
    return values or {}


def _load_chain(name: str, children: tuple[str, ...]) -> dict[str, Any]:
    if name.endswith(_SUFFIXES):
        path = expand(name)
    elif name in preset_names():
        path = presets_folder() / f"{name}.yaml"
    else:
        raise UserError(unknown_name("preset", name, preset_names()) + " A file of your own ends in .yaml.")
    place = str(path.resolve())  # one file can be named in many ways
    if place in children:
        raise UserError(f"presets extend each other in a circle: {' -> '.join((*children, place))}.")
    values = _read_yaml(path)
    with _named(path):
        parent = convert(values.pop("extends", None), str | None, "extends")
        values = _check(values, Config, "")
        if parent is not None:
            parent = str(path.parent / expand(parent)) if parent.endswith(_SUFFIXES) else parent
            values = _merge(_load_chain(parent, (*children, place)), values, Config)
    return values


def _merge(base: Mapping[str, Any], layer: Mapping[str, Any], section: Any = None) -> dict[str, Any]:
    """Return `layer` merged over `base`; `section` is the class whose fields these are, None for options."""
    merged = dict(base)
    if section is Config and "method" in layer:
        # "--preset toppo_mt10 --method cagrad" asks for cagrad on both networks.
        for key in _OF_ONE_NETWORK:
            if key not in layer:
                merged.pop(key, None)
                merged.pop(f"{key}_options", None)
    for key in tuple(merged):
        if owner := owner_of(key):
            before = base.get(owner, getattr(section, owner, None))
            if layer.get(owner, before) != before:
                del merged[key]  # options of another plug-in
    for key, value in layer.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value, getattr(section, key, None)) if both else value
    return merged


def _check(values: Mapping[str, Any], section: Any, prefix: str) -> dict[str, Any]:
    """Return `values` of a section, converted; rules between fields are checked by the whole Config."""
    types = field_types(section)
    checked = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in types:
            raise UserError(_unknown_key(path, [prefix + name for name in types]))
        if dataclasses.is_dataclass(types[key]):
            if not isinstance(value, Mapping):
                raise UserError(f"{path} must be a mapping 'key: value'; found {quoted(value)}.")
            checked[key] = _check(value, types[key], path + ".")
        else:
            checked[key] = convert(value, types[key], path)
    return checked


def _unknown_key(path: str, valid: list[str]) -> str:
    """Return the message for an unknown key; it names the section that has a key of that name, if any."""
    leaf, types = path.rpartition(".")[2], field_types(Config)
    sections = [key for key, kind in types.items() if dataclasses.is_dataclass(kind)]
    places = {key: f"{key}.{leaf}" for key in sections if leaf in field_types(types[key])}
    if leaf not in types and not places:
        return unknown_name("key", path, valid)
    place = leaf if leaf in types else next(iter(places.values()))
    return f"unknown key '{path}'. Did you mean '{place}'? Valid: {', '.join(sorted(valid))}."
