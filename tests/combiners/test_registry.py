from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrl.combiners import COMBINERS, Combiner, make_combiner, registry
from mtrl.combiners.cagrad import CAGrad
from mtrl.errors import UserError
from mtrl.registry import load_object
from tests.combiners.calls import combined, methods
from tests.combiners.oracles import ORACLES
from tests.helpers.matrices import jacobian


def test_methods_are_registered_under_their_own_names() -> None:
    assert {name: cls.name for name, cls in COMBINERS.items()} == {name: name for name in COMBINERS}
    assert all(issubclass(cls, Combiner) for cls in COMBINERS.values())


def test_files_that_an_editor_or_macos_leaves_are_no_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mean.py", ".#mean.py", "._mean.py", "mean copy.py"):
        (tmp_path / name).touch()
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    registry.scan()


def test_a_file_that_failed_once_is_loaded_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # both versions may have one time stamp
    file = tmp_path / "failing_once.py"
    for text in ("raise KeyError('unmounted')", "raise KeyboardInterrupt"):
        file.write_text(text)
        with pytest.raises((KeyError, KeyboardInterrupt)):
            COMBINERS[f"{file}:Own"]
    file.write_text("from mtrl.combiners.mean import Mean as Own")
    assert issubclass(COMBINERS[f"{file}:Own"], Combiner)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":Foo", r"is named as package\.module:Name or file\.py:Name; found ':\.\.\.'"),
        (".foo:Bar", r"is named as package\.module:Name or file\.py:Name; found '\.foo:\.\.\.'"),
        ("{here}/plug.py:Gentle", "must be a class or a function; found a partial"),
        ("{here}/empty.py:Foo", r"unknown name in .*empty\.py 'Foo'\.$"),
    ],
)
def test_a_name_that_is_no_plug_in_is_refused_as_a_mistake(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text("import functools\nGentle = functools.partial(dict, a=1)\n")
    (tmp_path / "empty.py").touch()
    with pytest.raises(UserError, match=message):
        COMBINERS.options(name.format(here=tmp_path))


def test_a_name_that_cannot_be_registered_says_which_rule_it_breaks() -> None:
    with pytest.raises(UserError, match="as 'a:b': a name has no colon"):
        COMBINERS.register("a:b", Combiner)
    with pytest.raises(UserError, match="as 'mean': the name is taken"):
        COMBINERS.register("mean", Combiner)


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        ValueError, match=r"unknown method 'CAGrads'. Did you mean 'cagrad'\? Valid: adatask, "
    ):
        make_combiner("CAGrads", num_tasks=2)


def test_an_unknown_argument_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        ValueError, match=r"unknown argument 'maxnorm' of nash_mtl. Did you mean 'max_norm'\?"
    ):
        make_combiner("nash_mtl", num_tasks=2, maxnorm=1.0)


def test_an_argument_of_a_method_without_any_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown argument 'c' of imtl_g\. It takes none"):
        make_combiner("imtl_g", num_tasks=2, c=1.0)


class Extended(CAGrad):
    """Adds an option, and hands all others on."""

    name = "extended"

    def __init__(self, *, num_tasks: int, extra: float = 1.0, **options: Any) -> None:
        super().__init__(num_tasks=num_tasks, **options)
        self.extra = extra


def test_a_class_that_hands_options_on_gets_them_all() -> None:
    made = make_combiner(Extended, num_tasks=3, extra=2.0, c=0.2, rescale=0)
    assert isinstance(made, Extended)
    assert made.extra == 2.0
    rows = jacobian("conflicting", 3, seed=0)
    alone = make_combiner("cagrad", num_tasks=3, c=0.2, rescale=0)
    assert torch.equal(made.combine(rows), alone.combine(rows))
    with pytest.raises(ValueError, match="c must be a finite number"):
        make_combiner(Extended, num_tasks=3, c=-1.0)


@pytest.mark.parametrize("key", ["num_tasks", "method", 3, None])
def test_keys_that_are_no_option_of_a_base_are_refused_as_such(
    key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=rf"unknown argument '{key}' of cagrad\..* Valid: c, "):
        make_combiner("momentum", num_tasks=3, base="cagrad", base_options={key: 2})
    monkeypatch.setattr(COMBINERS, "_plugins", {**COMBINERS._plugins, "extended": Extended})
    if key != "method":  # the class may hand it on
        with pytest.raises(UserError, match=rf"unknown argument '{key}' of extended\. Valid: extra"):
            make_combiner("momentum", num_tasks=3, base="extended", base_options={key: 2})


@pytest.mark.parametrize(
    ("name", "argument", "value", "rule"),
    [
        ("adatask", "beta1", 1.0, r"in \[0, 0.99999\]"),
        ("adatask", "eps", 0.0, ">= 1e-30"),
        ("adatask", "reduction", "total", "one of 'sum', 'mean'"),
        ("bmtl", "temperature", 0.0, ">= 1e-06"),
        ("db_mtl", "beta", 1.1, r"in \[0, 0.99999\]"),
        ("famo", "lr", -0.1, ">= 0"),
        ("famo", "shift", "lowest", "one of 'none', 'minimum'"),
        ("graddrop", "leak", 2.0, r"in \[0, 1\]"),
        ("slaw", "decay", -1.0, r"in \[0, 1\]"),
        ("cagrad", "c", -0.1, ">= 0"),
        ("cagrad", "c", float("nan"), ">= 0"),
        ("cagrad", "c", "0.5", ">= 0"),
        ("cagrad", "rescale", 3, "one of 0, 1, 2"),
        ("cagrad", "rescale", True, "one of 0, 1, 2"),
        ("cagrad", "c", 1e300, "<= 1e\\+12"),
        ("cagrad", "c", 10**400, "<= 1e\\+12"),
        ("mean", "weights", (10**400, 1), "2 finite numbers"),
        ("imgrad", "c", 1e200, "<= 1e\\+12"),
        ("cagrad_fast", "c", 1e300, "<= 1e\\+12"),
        ("sdmgrad", "lam", 1e300, "<= 1e\\+12"),
        ("sdmgrad_os", "lam", 1e300, "<= 1e\\+12"),
        ("stch", "warmup", 10**100, "<= 1e\\+12"),
        ("uw", "lr", 1e6, r"in \[0, 10\]"),
        ("conicgrad", "c", 1.5, r"in \[0, 1\]"),
        ("fs_mtl", "rho", float("inf"), ">= 0"),
        ("fs_mtl", "adaptive", 1, "True or False"),
        ("fs_mtl", "base", "fs_mtl", "another method"),
        ("nash_mtl", "max_norm", -1.0, ">= 0"),
        ("nash_mtl", "refresh_every", 0, ">= 1"),
        ("nash_mtl", "refresh_every", 2.0, ">= 1"),
        ("sdmgrad", "lam", -1.0, ">= 0"),
        ("mean", "num_tasks", 0, "positive integer"),
        ("cagrad", "rescale", 1.0, "one of 0, 1, 2"),
        ("modo", "batches", 3.0, "one of 1, 3"),
        ("turns", "order", 3, "each task number below 2 once"),
        ("turns", "order", (1.0, 0.0), "each task number below 2 once"),
        ("blocks", "sizes", 5, "positive numbers of columns"),
        ("blocks", "sizes", 0, "positive numbers of columns"),
        ("mean", "weights", "12", "2 finite numbers"),
        ("mean", "weights", ("1", "2"), "2 finite numbers"),
    ],
)
def test_an_invalid_value_is_refused_with_its_argument_rule_and_value(
    name: str, argument: str, value: Any, rule: str
) -> None:
    with pytest.raises(ValueError, match=rf"{argument} must .*{rule}.*found {re.escape(repr(value))}"):
        make_combiner(name, **{"num_tasks": 2, argument: value})


@methods
def test_numpys_numbers_count_like_pythons(name: str) -> None:
    given, plain = dict(ORACLES[name].options), dict(ORACLES[name].options)
    for key, option in COMBINERS.options(name).items():
        value = plain.get(key, option.default)
        if isinstance(value, int) and not isinstance(value, bool):
            given[key] = np.int64(value)
        elif isinstance(value, float):
            given[key] = np.float32(value)
            plain[key] = float(given[key])
    rows = jacobian("iid", 4, seed=0)
    directions = []
    made: list[tuple[Any, dict[str, Any]]] = [(np.int64(4), given), (4, plain)]
    for tasks, options in made:
        combiner = make_combiner(name, num_tasks=tasks, **options)
        combiner.seed(type(tasks)(7))
        directions.append(combined(combiner, rows))
    assert torch.equal(*directions)


def test_fs_mtl_refuses_an_unknown_base() -> None:
    with pytest.raises(ValueError, match="unknown method 'nash'"):
        make_combiner("fs_mtl", num_tasks=2, base="nash")


@methods
def test_the_largest_constants_give_finite_directions(name: str) -> None:
    options = {key: option.default for key, option in COMBINERS.options(name).items()}
    for key, default in options.items():
        if isinstance(default, bool) or not isinstance(default, (int, float)):
            continue
        for value in (10**12, 5, 1, 0.99999):  # the first that is in the range is the largest of these
            try:
                combiner = make_combiner(name, num_tasks=3, **(ORACLES[name].options | {key: value}))
            except ValueError:
                continue
            for seed in range(3):
                assert combined(combiner, jacobian("iid", 3, seed)).isfinite().all(), (key, value)
            break


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("class Mine: pass\n")
    first, second, again = (
        load_object(f"{tmp_path}/{of}/mine.py:Mine", "suite") for of in ("one", "two", "one")
    )
    assert first is again
    assert first is not second
    assert all(pickle.loads(pickle.dumps(cls)) is cls for cls in (first, second))
