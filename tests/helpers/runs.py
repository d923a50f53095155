"""Bit-exact comparison of two runs."""

from __future__ import annotations

from pathlib import Path

from mtrl.runs.checkpoint import load_checkpoint
from tests.helpers.checkpoints import assert_same
from tests.helpers.short_runs import lines, without_time


def assert_same_run(left: Path, right: Path, *, evaluations: bool = True, counters: bool = True) -> None:
    """The newest checkpoints and every logged number, times apart, are equal.

    Without `counters` the number of restarted workers may differ, as long as no episode of training was lost.
    """
    states = [load_checkpoint(run) for run in (left, right)]
    for _, state in states:
        if not counters:
            del state["loop"]["restarts"]
    assert_same(*states)
    for name in ("metrics.jsonl", "evaluations.jsonl")[: 2 if evaluations else 1]:
        pairs = zip(lines(left / name), lines(right / name), strict=True)
        for one, other in pairs:
            rest = [without_time(line) for line in (one, other)]
            if not counters:
                for line in rest:
                    line.pop("env/restarts", None)
            assert rest[0] == rest[1]
