"""The table of scripts/mutate.py keeps up with the code: `make mutate` itself takes minutes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutate import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.row)
def test_each_protection_and_the_test_that_notices_are_there(mutation: Mutation) -> None:
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.protection) == 1
    file, _, test = mutation.test.partition("::")
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    assert test.partition("[")[0] in {node.name for node in body if isinstance(node, ast.FunctionDef)}
