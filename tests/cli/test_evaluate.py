from __future__ import annotations

from pathlib import Path

import pytest

from mtrl.cli.evaluate import main as main_evaluate
from tests.cli.conftest import Calls


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "PATH"),
        ("run --episodes x", "--episodes must be an integer; found 'x' (text)."),
        ("run --episodes 0", "--episodes must be positive; found 0."),
        ("run --epsiodes 3", "unknown flag '--epsiodes'. Did you mean '--episodes'?"),
        ("run other", "Unrecognized options: other"),
        ("run --camera topview", "found no --video"),
    ],
)
def test_mistake_in_evaluation(
    line: str, message: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_evaluate(line.split()) == 2
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
    given |= {"video": False, "camera": None, "best": True, "trust": False}
    assert calls.made == [("evaluate_run", (Path("runs/a"),), given)]
