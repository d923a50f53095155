"""Finds the methods of this folder and builds them by name: a method is one file, nothing lists it."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtrl.combiners.base import Combiner

COMBINERS: dict[str, type[Combiner]] = {}


def scan() -> None:
    """Fill COMBINERS with the one class of each method file, whose `name` is the file's stem.

    Raises:
        TypeError: a file does not define exactly one concrete Combiner of its own name.
    """
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem.startswith("_") or path.stem in ("base", "registry"):
            continue
        module = importlib.import_module(f"mtrl.combiners.{path.stem}")
        found = [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, Combiner) and value.__module__ == module.__name__
        ]
        if len(found) != 1 or found[0].name != path.stem or inspect.isabstract(found[0]):
            names = [value.__name__ for value in found]
            raise TypeError(
                f"{path.name} must define one concrete Combiner with name = {path.stem!r}; found {names}."
            )
        COMBINERS[path.stem] = found[0]


def make_combiner(name: str, *, num_tasks: int, **options: Any) -> Combiner:
    """Return a fresh instance of the method `name` for `num_tasks` tasks.

    Raises:
        ValueError: unknown method or argument (names the nearest valid ones), or a value outside its rule.
    """
    if name not in COMBINERS:
        raise ValueError(f"unknown combiner {name!r}.{_nearest(name, COMBINERS)}")
    cls = COMBINERS[name]
    valid = [key for key in inspect.signature(cls).parameters if key != "num_tasks"]
    for key in options:
        if key not in valid:
            raise ValueError(f"unknown argument {key!r} of {name}.{_nearest(key, valid)}")
    return cls(num_tasks=num_tasks, **options)


def _nearest(found: str, valid: Iterable[str]) -> str:
    names = sorted(valid)
    if not names:
        return " It takes none."
    near = difflib.get_close_matches(str(found).casefold(), names, n=1, cutoff=0.5)
    return (f" Did you mean {near[0]!r}?" if near else "") + f" Valid: {', '.join(names)}."
