"""Every method's updates are those of commit dbb5aa9, before the update was rewritten without side channels.

That commit wrote tests/helpers/fingerprints.json; methods that came later have those of their first commit.
Processors round differently, and Adam's first steps turn the sign of a tiny gradient into a whole step: moves
agree to a few hundredths of their length. `python -m tests.helpers.fingerprints
tests/helpers/fingerprints.json` adds a new method's lines and leaves all others alone. A change that is meant
to change numbers deletes the lines of the methods that it changes first.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtrl.combiners import COMBINERS
from tests.helpers import fingerprints
from tests.helpers.fingerprints import RECIPES, fingerprint

STORED = json.loads((Path(__file__).parent / "helpers" / "fingerprints.json").read_text(encoding="utf-8"))


@pytest.mark.dear
@pytest.mark.parametrize(
    "recipe",
    [pytest.param(recipe, marks=[] if recipe == "sac_laptop" else [pytest.mark.slow]) for recipe in RECIPES],
)
@pytest.mark.parametrize("method", sorted({name.rpartition("/")[2] for name in STORED}))
def test_updates_are_those_before(method: str, recipe: str) -> None:
    expected, _ = STORED[f"{recipe}/{method}"]
    found, _ = fingerprint(recipe, method)
    for network, numbers in expected.items():
        tolerance = 0.03 * numbers[0] + 1e-9  # a method may not have moved the actor yet
        assert found[network] == pytest.approx(numbers, rel=0.0, abs=tolerance), network


def test_every_method_has_a_fingerprint() -> None:
    assert {f"{recipe}/{method}" for recipe in RECIPES for method in COMBINERS} == set(STORED), (
        "add what is missing: python -m tests.helpers.fingerprints tests/helpers/fingerprints.json"
    )


def test_the_script_adds_what_the_file_lacks_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "fingerprint", lambda recipe, method: [{}, "new"])
    names = {f"{recipe}/{method}" for recipe in RECIPES for method in COMBINERS}
    lacking = {"sac_laptop/cagrad", "laptop_v1/uw"}
    stored = {name: value for name, value in STORED.items() if name not in lacking}
    path = tmp_path / "fingerprints.json"
    path.write_text(json.dumps(stored | {"sac_laptop/gone": [{}, "old"]}), encoding="utf-8")
    fingerprints.main(path)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found == {name: stored.get(name, [{}, "new"]) for name in names}
