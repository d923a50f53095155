"""Code that a stored configuration names: nothing of it runs before the user has agreed. See SECURITY.md."""

import functools
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any, NamedTuple

from mtrl.config.presets import config_to_dict, load_config
from mtrl.config.schema import Config
from mtrl.errors import UserError
from mtrl.registry import locate
from mtrl.runs import console
from mtrl.runs.directory import CONFIG_NAME


class Code(NamedTuple):
    """A name such as "file.py:Name" in a configuration, and the file that it would run."""

    name: str
    file: Path | None  # None: not found without importing anything


_known: set[Code] = set()  # named by the user of this process
_INSTALLED = {
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")
}


def code_in(config: Config) -> dict[Code, list[str]]:
    """Return the code that a configuration names -> the settings that name it; imports nothing.

    Every value with a colon counts: names of plug-ins, of methods that others wrap, ids of environments.
    """
    found: dict[Code, list[str]] = {}
    values = config_to_dict(config)
    tasks = values.pop("tasks")
    if config.suite == "gymnasium":  # a task that has no definition is the id of an environment
        defined = config.suite_options.get("environments") or {}
        values["tasks"] = [task for task in tasks if task not in defined]
    names = [*_texts(values, ""), *((name, "method_defaults") for name in config.method_defaults)]
    for name, key in names:
        if ":" in name:
            found.setdefault(Code(name, locate(name)), []).append(key)
    return found


def remember(config: Config) -> None:
    """Note that the user has named the code of `config`: it needs no consent in a stored configuration."""
    _known.update(code_in(config))


def load_trusted(run_dir: Path, *, trust: bool, named: Config | None = None) -> Config:
    """Return the stored configuration of a run, unless it names code that the user has not agreed to run.

    Args:
        run_dir: the run.
        trust: whether the user trusts whoever wrote the run.
        named: a configuration that the user gave for this run; its code is agreed to.

    Raises:
        UserError: as `load_config`. Or `trust` is false and the configuration names a file inside the run
            directory, or code that the user of this process has neither named nor imported. The id of an
            environment in an installed package for Gymnasium only imports that package, and is no such code.
    """
    config = load_config(run_dir / CONFIG_NAME)
    agreed = _known | set(code_in(named) if named else ())
    for code, keys in code_in(config).items():
        inside = code.file is not None and code.file.is_relative_to(run_dir.resolve())
        if (code in agreed or _is_imported(code)) and not inside:
            continue
        what = f"{keys[0]} '{code.name}' ({code.file or 'no file found'})"
        if not inside and config.suite == "gymnasium" and _only_imports_a_package(code, keys):
            console.say(f"importing the installed package of an environment of the run: {what}")
            continue
        if not trust:
            raise UserError(
                f"'{run_dir / CONFIG_NAME}' names code, which would be run: {what}. Pass --trust (in Python "
                "trust=True) if you know that code or trust whoever gave you the run; see SECURITY.md."
            )
        console.say(f"running code that the run's configuration names: {what}")
    return config


def _only_imports_a_package(code: Code, keys: list[str]) -> bool:
    """Return whether `code` is nothing but the id of an environment in an installed package for Gymnasium.

    Gymnasium imports the package of an id and looks the id up; it calls nothing that the id names. The user
    has installed the package for this purpose. Modules inside a package do not count: any could be named.
    """
    package = code.name.partition(":")[0]
    installed = code.file is not None and any(code.file.is_relative_to(place) for place in _INSTALLED)
    ids = all(re.fullmatch(r"tasks|suite_options\.environments\..*", key) for key in keys)
    return installed and ids and package in _packages_for_gymnasium()


@functools.cache
def _packages_for_gymnasium() -> frozenset[str]:
    """Return the names under which installed distributions that require Gymnasium are imported."""
    return frozenset(
        package
        for package, names in packages_distributions().items()
        if any(re.match(r"gymnasium\b", line) for name in names for line in requires(name) or ())
    )


def _is_imported(code: Code) -> bool:
    """Return whether the user's program has imported the file of `code`; installed packages do not count."""
    if code.file is None or any(code.file.is_relative_to(place) for place in _INSTALLED):
        return False
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return str(code.file) in files


def _texts(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield every text in nested mappings and lists, with its key."""
    for key, value in values.items():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Mapping):
                yield from _texts(item, f"{prefix}{key}.")
            elif isinstance(item, list | tuple):
                yield from _texts({key: item}, prefix)
            elif isinstance(item, str):
                yield item, f"{prefix}{key}"
