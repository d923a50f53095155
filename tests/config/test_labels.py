"""What runs are called."""

from __future__ import annotations

from typing import Any

import pytest

from mtrl.config.files import file_name
from mtrl.config.labels import method_label


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"method": "cagrad"}, "cagrad"),
        ({"method": "mean", "critic_method": "nash_mtl", "actor_method": "pcgrad"}, "nash_mtl / pcgrad"),
        ({"method": "cagrad", "actor_method": "mean", "critic_method": None}, "cagrad / mean"),
        ({"method": "mean", "critic_method": "cagrad", "actor_method": "cagrad"}, "cagrad"),
        ({"method": "cagrad", "method_options": {"c": 0.4}, "actor_method": "cagrad"}, "cagrad / cagrad"),
    ],
)
def test_a_run_is_named_after_the_methods_of_both_networks(settings: dict[str, Any], label: str) -> None:
    assert method_label(settings) == label


@pytest.mark.parametrize(
    "text", ["../../esc/rel", "/abs/dir", "..", "a/../..", "a\0b", "a\nb", ".hidden", ""]
)
def test_a_file_name_stays_in_its_folder(text: str) -> None:
    name = file_name(text)
    assert name and not name.startswith(".") and not set(name) & set("/\\\0\n")


def test_a_file_name_keeps_what_is_harmless() -> None:
    assert file_name("reach-v3+push-v3") == "reach-v3+push-v3"
    assert file_name("nash_mtl / path/to/file.py:Name") == "nash_mtl-path-to-file.py-Name"
    assert len(file_name("x" * 4_000)) == 100
