"""The measurement behind the figures of docs/reliability.md."""

from __future__ import annotations

import re

import pytest
from mtrl_chaos import checkpoint_cost


def test_both_ways_of_writing_a_checkpoint_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint_cost, "CAPACITY", 5_000)
    checkpoint_cost.main("MT10")
    floats = 5_000 * 10 * (39 + 4 + 1 + 39 + 1)  # of each transition: 4 bytes each, and a little for the rest
    found = re.match(
        r"MT10: (\d+) MiB; training waited [\d.]+ s before; now [\d.]+ ms", capsys.readouterr().out
    )
    assert found and int(found[1]) == pytest.approx(4 * floats / 2**20, abs=1)
