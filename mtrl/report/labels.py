"""What the rows of tables and figures are called: the method, and the settings in which rows differ."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtrl.config.presets import NOT_RECORDED, OF_NETWORK
from mtrl.report.table import plain

_METHODS = ("method", "critic_method", "actor_method")
_OPTIONS = tuple(f"{key}_options." for key in _METHODS)
_NETWORK_OPTIONS = tuple(f"network.{key}." for key in OF_NETWORK)


def row_labels(configurations: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[str]:
    """Return a label for each row, from its settings, its method and what the other rows have."""
    differing = _differing(configurations)
    networks = [str(settings.get("network.architecture")) for settings in configurations]
    within, of_network = (_differing_within(configurations, names) for names in (methods, networks))
    # Options of different methods, or networks, differ anyway, so a label only names what differs within.
    shown = [
        [
            key
            for key in differing
            if key in within[method] or not key.startswith((*_OPTIONS, *_METHODS))
            if key in of_network[network] or not key.startswith(_NETWORK_OPTIONS)
        ]
        for method, network in zip(methods, networks, strict=True)
    ]
    short = _short({key for keys in shown for key in keys})
    labels = []
    for settings, method, keys in zip(configurations, methods, shown, strict=True):
        words = _words(settings, sorted(keys, key=lambda key: (not key.startswith(_OPTIONS), key)), short)
        name = plain(method)
        labels.append(name if not words else f"{name} ({words})" if len(within) > 1 else words)
    return unique(labels)


def options(settings: Mapping[str, Any]) -> str:
    """Return all options of the methods of a row, as their flags are called."""
    keys = [key for key in settings if key.startswith(_OPTIONS)]
    return _words(settings, keys, {key: _flag(key) for key in keys})


def unique(labels: Sequence[str]) -> list[str]:
    """Number labels that several rows have: a long tuple is abbreviated in labels."""
    seen: Counter[str] = Counter()
    total = Counter(labels)
    numbered = []
    for label in labels:
        seen[label] += 1
        numbered.append(f"{label} #{seen[label]}" if total[label] > 1 else label)
    return numbered


def text(value: Any) -> str:
    """Return a value of a setting as labels and messages show it."""
    if isinstance(value, tuple):
        shown = ", ".join(map(str, value[:3]))
        return plain(f"{shown}, ... ({len(value)})" if len(value) > 3 else shown)
    return plain(str(value))


def _flag(key: str) -> str:
    """Return an option's key as its flag has it: c for `--method.c`, critic.c for `--method.critic.c`."""
    return key.replace("_method_options", "").removeprefix("method_options.")


def _short(keys: Iterable[str]) -> dict[str, str]:
    """Return settings by their last word where that is no other's (gamma for sac.gamma), options as flags."""
    flags = {key: _flag(key) for key in keys}
    last = {key: key.rpartition(".")[2] for key in flags if not key.startswith(_OPTIONS)}
    count = Counter(name.rpartition(".")[2] for name in flags.values())
    return {key: last[key] if key in last and count[last[key]] == 1 else name for key, name in flags.items()}


def _words(settings: Mapping[str, Any], keys: Sequence[str], names: Mapping[str, str]) -> str:
    shown = {names[key]: text(settings.get(key, NOT_RECORDED)) for key in keys}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def _differing(configurations: Sequence[Mapping[str, Any]]) -> set[str]:
    keys = {key for settings in configurations for key in settings}
    return {
        key for key in keys if len({repr(settings.get(key, NOT_RECORDED)) for settings in configurations}) > 1
    }


def _differing_within(
    configurations: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, set[str]]:
    """Return, for each name, in what the configurations of that name differ."""
    return {
        name: _differing([own for own, of in zip(configurations, names, strict=True) if of == name])
        for name in dict.fromkeys(names)
    }
