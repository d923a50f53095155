"""What runs are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtrl.config.files import file_name, paths_in
from mtrl.config.labels import method_label, tasks_folder, tasks_label
from mtrl.errors import UserError


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


def test_runs_are_named_after_few_tasks_and_the_number_of_many() -> None:
    assert tasks_label(["a", "b"]) == "a, b"
    assert tasks_label(["a"] * 4, many="tasks of x") == "4 tasks of x"
    assert tasks_folder(["ALE/Pong-v5", "b"]) == "ale-pong-v5+b"
    assert tasks_folder(["../../x"]) == "x"
    assert tasks_folder(["a"] * 10) == "10-tasks"


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


TASKS = [
    "push-v3",
    "../../x",
    "/abs/dir",
    "a/b",
    "a-b",
    "A-B",
    "..",
    "",
    ".hidden",
    "x" * 300,
    "x" * 301,
    "日本",
]


def test_names_from_a_configuration_stay_in_their_folder_and_apart(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    paths = paths_in(folder, TASKS, ".mp4")
    assert paths["push-v3"] == folder / "push-v3.mp4"
    assert len({str(path).casefold() for path in paths.values()}) == len(TASKS)
    for path in paths.values():
        assert path.parent == folder
        path.write_text("")
    assert len(list(folder.iterdir())) == len(TASKS)


def test_a_link_that_leads_out_of_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/tasks").symlink_to(tmp_path)
    with pytest.raises(UserError, match="outside of"):
        paths_in(tmp_path / "run/tasks", ["push-v3"])
