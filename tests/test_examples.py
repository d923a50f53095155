"""Every file of examples/ runs and does what its first line says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.mark.dear
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_learns(path: Path) -> None:
    first, last = runpy.run_path(str(path))["main"](20)
    assert (last < first).all()
