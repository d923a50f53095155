"""Bit-exact comparison of two runs."""

from __future__ import annotations

from pathlib import Path

from mtrl.runs.checkpoint import load_checkpoint
from tests.helpers.checkpoints import assert_same
from tests.helpers.short_runs import lines, without_time


def assert_same_run(left: Path, right: Path, *, evaluations: bool = True) -> None:
    """The newest checkpoints and every logged number, times apart, are equal."""
    assert_same(load_checkpoint(left), load_checkpoint(right))
    for name in ("metrics.jsonl", "evaluations.jsonl")[: 2 if evaluations else 1]:
        pairs = zip(lines(left / name), lines(right / name), strict=True)
        for one, other in pairs:
            assert without_time(one) == without_time(other)
