"""Which evaluation is the best, where tasks give a success flag always, only when solved, or never."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint
from mtrl.runs.checkpoint_writer import Saving
from mtrl.runs.jsonl import JsonLines
from mtrl.runs.log import Evaluation, RunInfo, Stamp
from mtrl.training.best import BestPolicy, Outcome

NAN = np.nan
SOLVED_ONLY = (  # success of the two tasks, return, and whether the policy is better than those before
    ((NAN, NAN), 50.0, True),
    ((0.5, 0.1), 60.0, True),  # 0.3
    ((0.6, NAN), 90.0, False),  # 0.3 again: task b was never solved
    ((NAN, 0.8), -9.0, True),  # 0.4
    ((NAN, NAN), 99.0, False),
)
NO_FLAG_OF_B = (
    ((0.9, NAN), 5.0, True),
    ((1.0, NAN), 4.0, False),  # compared by return
    ((0.1, NAN), 6.0, True),
)


class Disk:
    """Keeps best policies as a run does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_best(self, step: int, parts: Any) -> bool:
        (self.path / "best").mkdir(exist_ok=True)
        save_checkpoint(self.path / "best", step, parts, keep=1)
        return True


def _best(path: Path) -> BestPolicy:
    return BestPolicy(path, ("a", "b"), cast(Saving, Disk(path)))


def _evaluation(success: tuple[float, float], brought: float) -> Evaluation:
    rates = np.repeat(np.array(success)[:, None], 4, axis=1)
    return Evaluation(("a", "b"), rates, rates, np.full((2, 4), brought))


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("story", [SOLVED_ONLY, NO_FLAG_OF_B])
def test_evaluations_are_compared_by_success_as_soon_as_each_task_has_given_a_flag(
    story: tuple[tuple[tuple[float, float], float, bool], ...], resumed: bool, tmp_path: Path
) -> None:
    record = JsonLines()
    record.open(RunInfo(tmp_path, ("a", "b"), {}, {}, None))
    best, expected = _best(tmp_path), 0
    for step, (success, brought, better) in enumerate(story, start=1):
        if resumed:
            best = _best(tmp_path)
            best.find(step - 1, dict)
        result = _evaluation(success, brought)
        best.offer(step, Outcome.of_result(result), dict)
        record.evaluation(Stamp(step, step, 0.0), result, final=False)
        expected = step if better else expected
        assert load_checkpoint(tmp_path / "best")[0] == expected, step
    record.close()


def test_a_line_says_what_its_evaluation_said(tmp_path: Path) -> None:
    record = JsonLines()
    record.open(RunInfo(tmp_path, ("a", "b"), {}, {}, None))
    for success in ((0.25, 0.5), (0.25, NAN), (NAN, NAN)):
        result = _evaluation(success, 3.0)
        record.evaluation(Stamp(1, 1, 0.0), result, final=False)
        line = json.loads((tmp_path / "evaluations.jsonl").read_text().splitlines()[-1])
        assert Outcome.of_line(line) == Outcome.of_result(result)
    record.close()


def test_a_damaged_best_policy_is_named_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _best(tmp_path)
    first.offer(1, Outcome(0.9, 0.0, frozenset("ab")), lambda: {"parameters": [1.0]})
    (part,) = (tmp_path / "best").rglob("policy.pt")
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    again = _best(tmp_path)
    again.find(2, dict)
    assert "best/: skipped checkpoint step_000000001" in capsys.readouterr().err
    again.offer(3, Outcome(0.1, 0.0, frozenset("ab")), dict)
    assert load_checkpoint(tmp_path / "best")[0] == 3
