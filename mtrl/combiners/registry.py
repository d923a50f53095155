"""The methods by name: the files of this folder, found by a scan, and a user's own."""

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtrl.combiners.base import Combiner
from mtrl.errors import UserError, did_you_mean
from mtrl.registry import Registry

COMBINERS = Registry(
    "method",
    {},
    given=("num_tasks",),
    wrappers=True,
    bibliography=Path(__file__).with_name("references.bib"),
)

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def scan() -> None:
    """Fill COMBINERS with the one class of each method file under its `name`, usually the file's stem.

    Raises:
        TypeError: a file does not define exactly one concrete Combiner with a name of its own.
    """
    for path in sorted(Path(__file__).parent.glob("*.py")):
        # Editors and macOS leave files such as `.#cagrad.py` beside ours.
        if not path.stem.isidentifier() or path.stem.startswith("_") or path.stem in ("base", "registry"):
            continue
        module = importlib.import_module(f"mtrl.combiners.{path.stem}")
        found = [
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, Combiner) and value.__module__ == module.__name__
        ]
        if len(found) != 1 or "name" not in vars(found[0]) or inspect.isabstract(found[0]):
            names = [value.__name__ for value in found]
            raise TypeError(f"{path.name} must define one concrete Combiner with a `name`; found {names}.")
        COMBINERS.register(found[0].name, found[0])


def make_combiner(method: str | type[Combiner], *, num_tasks: int, **options: Any) -> Combiner:
    """Return a fresh instance of a method for `num_tasks` tasks.

    Args:
        method: its name, "package.module:Name" or "file.py:Name" of your own, or a class.
        num_tasks: T, at least 1.
        options: the method's own arguments.

    Raises:
        UserError: unknown method or argument (names the nearest valid ones), or something that is no concrete
            Combiner with a `name`. A UserError is a ValueError.
        ValueError: a value outside its rule.
    """
    return from_options(method, num_tasks, options)


def from_options(method: str | type[Combiner], num_tasks: int, options: Mapping[Any, Any]) -> Combiner:
    """As `make_combiner`, with the options as a mapping, whose keys may be anything.

    Raises:
        UserError, ValueError: as `make_combiner`.
    """
    cls = COMBINERS[method] if isinstance(method, str) else method
    if not (inspect.isclass(cls) and issubclass(cls, Combiner)) or inspect.isabstract(cls):
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        lacks = f" that lacks {', '.join(missing)}" if missing else ""
        raise UserError(
            f"a method must be a subclass of LossCombiner, GramCombiner or JacobianCombiner with their hooks "
            f"written; found {cls!r}{lacks}."
        )
    if not cls.name:
        raise UserError(f"{cls.__name__} needs a class attribute `name`, which messages use.")
    kinds = {name: parameter.kind for name, parameter in inspect.signature(cls).parameters.items()}
    valid = [name for name, kind in kinds.items() if kind in _NAMED and name != "num_tasks"]
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds.values()  # and hands it to the method that it extends
    for key in options:
        if key not in valid and not (takes_any and isinstance(key, str) and key != "num_tasks"):
            names = f" Valid: {', '.join(sorted(valid))}." if valid else " It takes none."
            raise UserError(f"unknown argument '{key}' of {cls.name}.{did_you_mean(str(key), valid)}{names}")
    made = cls(num_tasks=num_tasks, **options)
    made.seed(0)  # members that draw get a stream each
    return made
