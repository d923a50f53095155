"""docs/extending.md: its files in an empty folder, its commands as printed, and what they are said to do."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import mtrl
from mtrl.cli.evaluate import main as main_evaluate
from mtrl.cli.export import main as main_export
from mtrl.cli.report import main as main_report
from mtrl.cli.train import main as main_train
from mtrl.report.load import Run, read_run
from tests.helpers.killed_runs import kill_and_resume
from tests.helpers.short_runs import assert_same_run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def files_and_commands(page: str) -> tuple[dict[str, str], list[list[str]]]:
    """Blocks whose first line is a comment with a file's name, and the lines of all shell blocks."""
    files: dict[str, str] = {}
    commands: list[list[str]] = []
    for language, body in BLOCK.findall(page):
        if language == "sh":
            commands += [shlex.split(line, comments=True) for line in body.splitlines()]
        else:
            name = re.match(r"# (\S+\.(?:py|yaml))\n", body)
            assert name, f"a block without the name of its file: {body[:60]}"
            files[name[1]] = body
    return files, commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder as the working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def followed(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Run]:
    """Write the page's files and run its commands; return the runs by the names of their directories."""
    files, commands = files_and_commands(page)
    for name, body in files.items():
        (folder / name).write_text(body, encoding="utf-8")
    for program, *arguments in commands:
        if program == "python":
            runpy.run_path(arguments[0], run_name="__main__")
        else:
            main = importlib.import_module(f"mtrl.cli.{program.removeprefix('mtrl-')}").main
            assert main(arguments) == 0, capsys.readouterr().err
    return {path.name: read_run(path) for path in (folder / "runs").iterdir()}


@pytest.mark.dear
def test_every_training_of_the_page_finds_its_files_and_options(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their configurations are printed; what they train is slow, below."""
    files, commands = files_and_commands(PAGE.read_text(encoding="utf-8"))
    for name, body in files.items():
        (folder / name).write_text(body, encoding="utf-8")
    found = {}
    for program, *arguments in commands:
        if program == "mtrl-train" and "--resume" not in arguments:
            assert main_train([*arguments, "--print-config"]) == 0, capsys.readouterr().err
            found[arguments[-1]] = yaml.safe_load(capsys.readouterr().out)
    assert found.keys() >= {f"runs/{name}" for name in ("mean", "inverse", "gated", "climber")}
    _assert_chosen(found["runs/inverse"], found["runs/gated"])
    assert found["runs/climber"]["agent"] == "climber.py:build"
    assert main_train(["--preset", "points.yaml", "--tasks", "nroth", "--run-dir", "runs/none"]) == 2
    assert "Did you mean 'north'?" in capsys.readouterr().err


def _assert_chosen(inverse: dict[str, Any], gated: dict[str, Any]) -> None:
    """Assert that the configurations name the page's method and network, with the options of its commands."""
    assert (inverse["method"], inverse["method_options"]) == ("my_file:Inverse", {"power": 0.5})
    network = gated["network"]
    assert (network["options"], network["critic_options"]) == ({"width": 24}, {"width": 48})


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute on a machine that is not busy
def test_every_file_and_command_works_and_what_the_page_trains_learns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = followed(PAGE.read_text(encoding="utf-8"), folder, capsys)
    assert len(runs) == 7
    assert all(run.finished or name == "watched" for name, run in runs.items())
    saved = {name: yaml.safe_load((folder / f"runs/{name}/config.yaml").read_text()) for name in runs}
    _assert_chosen(saved["inverse"], saved["gated"])
    assert saved["inverse"]["steps"] == 400
    assert saved["gated_ppo"]["agent"] == "ppo"
    # Three corners of four at least: how soon the last one is learnt differs with the version of torch.
    for name in ("mean", "inverse", "watched", "best"):
        assert runs[name].evaluations[-1]["mean_success"] >= 0.75
    climbed = [line["mean_return"] for line in runs["climber"].evaluations]
    assert climbed[-1] > climbed[0] / 2  # returns are minus distances
    assert runs["climber"].evaluations[-1]["vector_step"] == 900  # after a resume at 600
    assert (folder / "climber_report" / "report.html").exists()
    for name in ("watched", "best"):
        step, success = (folder / "runs" / name / "best.txt").read_text().split()
        assert int(step) % 100 == 0
        assert float(success) >= 0.75
    assert "my_file:Inverse" in (folder / "report" / "report.html").read_text(encoding="utf-8")
    actions, _ = mtrl.load_policy(folder / "policy").predict(np.zeros((4, 2), np.float32))
    corners = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])
    assert ((actions * corners).sum(axis=1) > 0.5).sum() >= 3
    gated_policy = mtrl.load_policy(folder / "gated_policy", architecture="my_network.py:Gated")
    assert gated_policy.predict(np.zeros((4, 2), np.float32))[0].shape == (4, 2)


OWN = {
    "an agent": ["--agent", "climber.py:build"],
    "a network with SAC": ["--network", "my_network.py:Gated", "--method", "cagrad"],
    "a network with PPO": [
        *("--network", "my_network.py:Gated", "--method", "cagrad", "--agent", "ppo"),
        *("--ppo.rollout-steps", "30", "--ppo.minibatches", "6", "--ppo.value-norm", "pop_art"),
        *("--ppo.target-kl", "0.01"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_a_plug_in_of_the_page_survives_sigkill_bit_for_bit_and_is_evaluated_exported_and_reported(
    own: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, body in files_and_commands(PAGE.read_text(encoding="utf-8"))[0].items():
        (folder / name).write_text(body, encoding="utf-8")
    # The kill comes before the end; episodes of 20 steps and rollouts of 30 are under way then.
    steps = "800" if own == OWN["an agent"] else "300"
    flags = ["--preset", "points.yaml", "--steps", steps, "--train.checkpoint-interval", "70", *own]
    killed, undisturbed = folder / "runs" / "killed", folder / "runs" / "undisturbed"
    kill_and_resume(flags, killed, folder)
    assert main_train([*flags, "--run-dir", str(undisturbed)]) == 0
    assert_same_run(undisturbed, killed)
    assert main_evaluate([str(killed), "--episodes", "2", "--trust"]) == 0
    assert main_report([str(killed), "--out", str(folder / "report")]) == 0
    capsys.readouterr()
    code = main_export([str(killed), "--out", str(folder / "policy"), "--trust"])
    if own == OWN["an agent"]:
        assert code == 2
        assert "the agent climber.py:build cannot be exported: it has no method" in capsys.readouterr().err
    else:
        assert code == 0
        policy = mtrl.load_policy(folder / "policy", architecture="my_network.py:Gated")
        assert policy.predict(np.zeros((4, 2), np.float32))[0].shape == (4, 2)
