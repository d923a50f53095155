from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from mtrl.cli.evaluate import main as main_evaluate
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError
from tests.cli.conftest import Calls


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no runs: give run directories"),
        ("''", "expected a value; found an empty one. Is a shell variable not set?"),
        ("no/such/*", "no run directory matches 'no/such/*'"),
        ("run --episodes x", "--episodes must be an integer; found 'x' (text)."),
        ("run --episodes 0", "--episodes must be positive; found 0."),
        ("run --epsiodes 3", "unknown flag '--epsiodes'. Did you mean '--episodes'?"),
        ("run --camera topview", "found no --video"),
        ("x" * 300, "File name too long. Give another path."),
        ("~no-such-user/*", "cannot be expanded"),
    ],
)
def test_mistake_in_evaluation(
    line: str, message: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_evaluate(line.split() if line != "''" else [line[2:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert calls.made == []


def test_evaluation_passes_its_flags_on(calls: Calls) -> None:
    assert (
        main_evaluate(["runs/a", "--episodes", "7", "--device", "cpu", "--allow-version-mismatch", "--best"])
        == 0
    )
    given = {"episodes": 7, "device": "cpu", "allow_version_mismatch": True}
    given |= {"video": False, "camera": None, "best": True, "trust": False, "checkpoint": None}
    assert calls.made == [("evaluate_run", (Path("runs/a"),), given)]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (UserError("no valid checkpoint"), 2),
        (NonFiniteError("non-finite action"), 1),
        (EnvironmentFailure("a worker hangs"), 75),
    ],
)
def test_several_runs_and_patterns_are_evaluated_one_after_another_and_one_that_fails_ends_no_other(
    failure: Exception,
    code: int,
    calls: Calls,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "notes").mkdir()
    seen: list[str] = []

    def evaluate(run: Path, **values: Any) -> None:
        seen.append(f"{run.name} {values['checkpoint']}")
        if run.name == "b":
            raise failure
        if run.name == "c":
            raise UserError("a later failure")

    monkeypatch.setattr(sys.modules["mtrl.training.run"], "evaluate_run", evaluate)
    assert main_evaluate([str(tmp_path / "b"), str(tmp_path / "*"), "--checkpoint", "30"]) == code
    assert seen == ["b 30", "a 30", "c 30"]
    assert capsys.readouterr().err == f"error: {failure}\nerror: a later failure\n"
