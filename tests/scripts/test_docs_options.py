"""The table of the methods' options that docs/api.md prints."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import docs_options
import pytest

from mtrl.combiners import COMBINERS, make_combiner

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("method", [name for name in COMBINERS if name != "torchjd"])
def test_the_printed_ranges_are_those_that_the_method_accepts(method: str) -> None:
    """The ends are accepted; numbers just beyond them are not."""
    for option, rule in docs_options.ranges(method).items():
        ends = [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", rule)]
        whole = isinstance(COMBINERS.options(method)[option].default, int)
        inside: list[Any]
        outside: list[Any]
        if "task" in rule:
            inside, outside = [(), tuple(range(3))], [(1,), (0, -1, 2), (1, 2, 3, 4)]
        else:
            kind = int if whole else float
            step = 1 if whole else None
            inside = [kind(end) for end in ends]
            outside = [ends[0] - (step or 1e-9)]
            if len(ends) == 2:
                outside.append(math.nextafter(ends[1], math.inf) + (step or 1e-9))
        for value in inside:
            make_combiner(method, num_tasks=3, **{option: value})
        for value in outside:
            with pytest.raises(ValueError, match=f"{option} must"):
                make_combiner(method, num_tasks=3, **{option: value})


def test_every_method_and_every_option_is_on_the_page() -> None:
    page = docs_options.on_page_markdown(f"before\n{docs_options.OPTIONS}\nafter")
    assert page.startswith("before\n### `adatask`")
    assert page.endswith("\nafter")
    for method in COMBINERS:
        rows = page.split(f"### `{method}`\n")[1].split("### `")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", rows, flags=re.MULTILINE)) == set(COMBINERS.options(method))
    assert "at least 0" in docs_options.options_of("cagrad")
    assert docs_options.on_page_markdown("another page") == "another page"


@pytest.mark.parametrize("mark", docs_options.PAPERS)
def test_the_papers_of_every_plug_in_stand_on_a_page(mark: str) -> None:
    registry = docs_options.PAPERS[mark]
    assert any(mark in page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    page = docs_options.on_page_markdown(mark)
    rows = {name: page.split(f"### `{name}`\n")[1].split("### `")[0] for name in registry}
    for name, row in rows.items():
        assert row.strip()
        assert ("bibtex" in row) == bool(registry[name].papers)
        assert all(key in row for key in registry[name].papers)
