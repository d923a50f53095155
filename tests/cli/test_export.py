"""`mtrl-export`: what it writes, what it says, what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mtrl
from mtrl.cli.export import main
from tests.helpers.counting_env import ACTION_DIM, OBS_DIM
from tests.helpers.short_runs import random_run


def test_the_printed_call_loads_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_run(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "README.md, policy.json, policy.safetensors" in printed
    call = printed.rpartition(": ")[2].partition(";")[0].strip()
    actions, _ = eval(call, {"mtrl": mtrl, "observations": np.zeros((2, OBS_DIM))})
    assert actions.shape == (2, ACTION_DIM)


def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    random_run(tmp_path / "run")
    (tmp_path / "file").touch()
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "Choose another --out" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "file"}
