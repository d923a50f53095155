from __future__ import annotations

from typing import Any

import pytest

from mtrl.combiners import COMBINERS, Combiner, make_combiner


def test_methods_are_registered_under_their_own_names() -> None:
    assert {name: cls.name for name, cls in COMBINERS.items()} == {name: name for name in COMBINERS}
    assert all(issubclass(cls, Combiner) for cls in COMBINERS.values())


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


@pytest.mark.parametrize(
    ("name", "argument", "value", "rule"),
    [
        ("adatask", "beta1", 1.0, r"in \[0, 0.99999\]"),
        ("adatask", "eps", 0.0, ">= 1e-30"),
        ("adatask", "reduction", "total", "one of 'sum', 'mean'"),
        ("bmtl", "temperature", 0.0, ">= 1e-06"),
        ("db_mtl", "beta", 1.1, r"in \[0, 1\]"),
        ("famo", "lr", -0.1, ">= 0"),
        ("famo", "shift", "lowest", "one of 'none', 'minimum'"),
        ("graddrop", "leak", 2.0, r"in \[0, 1\]"),
        ("slaw", "decay", -1.0, r"in \[0, 1\]"),
        ("cagrad", "c", -0.1, ">= 0"),
        ("cagrad", "c", float("nan"), ">= 0"),
        ("cagrad", "c", "0.5", ">= 0"),
        ("cagrad", "rescale", 3, "one of 0, 1, 2"),
        ("cagrad", "rescale", True, "one of 0, 1, 2"),
        ("conicgrad", "c", 1.5, r"in \[0, 1\]"),
        ("fs_mtl", "rho", float("inf"), ">= 0"),
        ("fs_mtl", "adaptive", 1, "True or False"),
        ("fs_mtl", "base", "fs_mtl", "another method"),
        ("nash_mtl", "max_norm", -1.0, ">= 0"),
        ("nash_mtl", "refresh_every", 0, ">= 1"),
        ("nash_mtl", "refresh_every", 2.0, ">= 1"),
        ("sdmgrad", "lam", -1.0, ">= 0"),
        ("mean", "num_tasks", 0, "positive integer"),
    ],
)
def test_an_invalid_value_is_refused_with_its_argument_rule_and_value(
    name: str, argument: str, value: Any, rule: str
) -> None:
    with pytest.raises(ValueError, match=rf"{argument} must be .*{rule}.*found {value!r}"):
        make_combiner(name, **{"num_tasks": 2, argument: value})


def test_fs_mtl_refuses_an_unknown_base() -> None:
    with pytest.raises(ValueError, match="unknown method 'nash'"):
        make_combiner("fs_mtl", num_tasks=2, base="nash")
