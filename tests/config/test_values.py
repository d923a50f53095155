"""Values of options from the shell."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import yaml

from mtrl.config import Config
from mtrl.config.presets import config_text
from mtrl.config.values import YamlLoader, convert, from_text
from mtrl.errors import UserError

# They look like a date, a number or a value with a tag, and are none.
NO_VALUES = (
    *("2026-30-11", "2026-11-30 25:00:00", "0x_", "0b_", "9" * 5_000),
    *("!!bool x", "!!int ''", "!!timestamp x"),
)


@pytest.mark.parametrize("annotation", [Any, float | str, int | str, float | bool | str | None, Any | None])
@pytest.mark.parametrize("text", ["3", "word"])
def test_an_option_of_several_types_is_from_the_shell_what_it_is_from_yaml(
    text: str, annotation: Any
) -> None:
    from_yaml = convert(yaml.load(text, YamlLoader), annotation, "d")
    assert repr(convert(from_text(text, annotation), annotation, "d")) == repr(from_yaml)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"), ("-007", "-007"), ("1:30", "1:30"), ("1:00:00", "1:00:00"), ("1:30.5", "1:30.5"),
        ("80_000", 80_000), ("0", 0), ("-3", -3), ("+3", 3), ("0x1F", 31), ("0b101", 5),
        ("3e-4", 3e-4), ("1e5", 1e5), ("-.5", -0.5), (".5e3", 500.0), ("1_000.5", 1000.5), ("1.", 1.0),
        ("1.5E+2", 150.0), ("-.inf", float("-inf")), ("1e", "1e"), (".", "."), ("0_8", "0_8"),
    ],
)  # fmt: skip
def test_numbers_are_decimal_unless_they_say_so(text: str, value: Any) -> None:
    found = yaml.load(text, YamlLoader)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        (".25", float | str, 0.25),
        ("[1, a]", Any, [1, "a"]),
        ("[1", Any, "[1"),
        ("2024", str, "2024"),  # a name may look like a number
        ("2024", str | None, "2024"),
        ("~", str | None, "~"),  # a folder
        ("None", str | None, None),
        ("off", Literal["warn", "off"], "off"),
        *((text, kind, text) for text in NO_VALUES for kind in (str, str | None, Any, int)),
    ],
)
def test_text_stays_text_where_nothing_else_is_meant(text: str, annotation: Any, value: Any) -> None:
    assert from_text(text, annotation) == value


def test_numbers_of_numpy_are_stored_as_numbers_and_objects_are_refused() -> None:
    given = {"kwargs": {"g": np.float64(5.0), "n": np.int64(3)}, "set": {"x": np.arange(2)}}
    stored = yaml.safe_load(config_text(Config(suite_options={"environments": {"a": given}})))
    expected = {"kwargs": {"g": 5.0, "n": 3}, "set": {"x": [0, 1]}}
    assert stored["suite_options"]["environments"] == {"a": expected}
    for kind in (int, np.float32):
        with pytest.raises(UserError, match=r"that config\.yaml cannot hold: <class '.*'>\. Options are"):
            config_text(Config(suite_options={"activation": kind}))
