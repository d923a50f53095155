"""What docs/choosing.md says about the methods is what a computation finds."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import pytest

from mtrl.combiners import COMBINERS
from tests.helpers import method_properties
from tests.helpers.loss_methods import losses_of
from tests.helpers.matrices import jacobian
from tests.helpers.method_properties import (
    HEADER,
    METHODS,
    Row,
    dependent_problems,
    direction,
    harmed,
    independent_problems,
    line,
    lines_of,
    rest,
    row,
)

PAGE = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
TABLE = lines_of(PAGE)
WRITE = (
    "delete rows that are wrong and write those that are missing: "
    "python -m tests.helpers.method_properties docs/choosing.md"
)


def test_the_table_has_a_row_for_each_method() -> None:
    assert list(TABLE) == METHODS, WRITE


def test_the_script_writes_rows_that_are_missing_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method_properties, "row", lambda name: Row(*"measured"))
    lacking = [TABLE[name] + "\n" for name in ("cagrad (paper)", "uw")]
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace(lacking[0], "").replace(lacking[1], "| `gone` | none |\n"), encoding="utf-8")
    method_properties.main(page)
    cells = " | m | e | a | s | u | r | e | d |\n"
    expected = PAGE.replace(lacking[0], "| `cagrad` (paper)" + cells).replace(lacking[1], "| `uw`" + cells)
    assert page.read_text(encoding="utf-8") == expected


def test_the_list_of_all_methods_names_each_once() -> None:
    """Methods and wrappers have a row each; of torchjd, the library, a sentence speaks."""
    section = PAGE.partition("\n## All methods\n")[2].partition("\n## ")[0]
    listed = [
        *re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE),
        *re.findall(r"^`(torchjd)`", section, re.M),
    ]
    assert sorted(listed) == sorted(COMBINERS), "give each method one row in docs/choosing.md, All methods"


@pytest.mark.dear
@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_what_holds_on_a_part_of_the_problems(name: str) -> None:
    """The tasks that are harmed are counted on all problems by the slow test."""
    written = cells(name)
    assert list(written[2:]) == rest(name), WRITE
    for cell, found, total in (
        (written.harmed, harmed(name, islice(independent_problems(), 8)), 60),
        (written.harmed_dependent, harmed(name, islice(dependent_problems(), 4), dependent=True), 30),
    ):
        of_part, of_all = (0 if text == "none" else int(text.split()[0]) for text in (found, cell))
        part = 8 if total == 60 else 4
        assert of_part <= of_all <= of_part + total - part


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_table_says_what_holds(name: str) -> None:
    assert TABLE.get(name) == line(name, row(name)), WRITE


def cells(name: str) -> Row:
    assert name in TABLE, f"no row of {name}: {WRITE}"
    return Row(*TABLE[name].removeprefix("| ").removesuffix(" |").split(" | ")[1:])


def recommended(situation: str) -> list[str]:
    """The methods in the row of the first table that begins so."""
    (found,) = [text for text in PAGE.splitlines() if text.startswith(f"| {situation}")]
    return re.findall(r"`(\w+)`", found.split(" | ")[1])


def test_methods_for_tasks_that_may_not_get_worse_harm_none() -> None:
    names = recommended("no task may get worse")
    assert len(names) >= 4
    assert all((cells(name).harmed, cells(name).harmed_dependent) == ("none", "none") for name in names)


def test_methods_for_losses_of_other_scales_do_not_turn_with_a_unit() -> None:
    names = recommended("losses or gradients differ in scale")
    assert len(names) >= 3
    assert all(cells(name).unit in ("ignored", "length") for name in names)


def test_methods_without_a_jacobian_take_none() -> None:
    names = recommended("T backward passes or a Jacobian cost too much")
    assert len(names) >= 3
    assert all("J" not in cells(name).cost for name in names)
    for text in PAGE.partition(HEADER)[0].splitlines():
        if text.startswith("| `") and "no Jacobian" in text:
            assert "J" not in cells(text.split("`")[1]).cost, text


def test_the_methods_that_a_loss_scale_changes_are_named() -> None:
    found = {name for name in METHODS if cells(name).power != "1"}
    assert named("The others do not:") == found, "name them in docs/methods.md"


@pytest.mark.dear
@pytest.mark.parametrize(
    ("sentence", "of_losses", "scales"),
    [
        ("commute only while S stays the same:", False, [8.0] * 6 + [16.0] * 6),
        ("Losses with S would change the weights of", True, [8.0] * 12),
    ],
)
def test_what_else_a_loss_scale_changes_is_named(sentence: str, of_losses: bool, scales: list[float]) -> None:
    seen = [(rows, losses_of(rows)) for rows in (jacobian("iid", 4, seed) for seed in range(12))]
    scaled = [
        (rows * s, losses * s if of_losses else losses)
        for s, (rows, losses) in zip(scales, seen, strict=True)
    ]
    found = set()
    for name in METHODS:
        if cells(name).power == "1":
            plain, other = direction(name, seen), direction(name, scaled) / scales[-1]
            if (other - plain).norm() > 1e-5 * plain.norm():
                found.add(name)
    assert named(sentence) == found, "name them in docs/methods.md"


def named(sentence: str) -> set[str]:
    """The methods that docs/methods.md names behind these words, up to the next full stop or `and those`."""
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    (found,) = re.findall(re.escape(sentence) + r"(.*?)(?:\.|and those)", " ".join(page.split()))
    return {"".join(parts) for parts in re.findall(r"`(\w+)`( \(paper\))?", found)}
