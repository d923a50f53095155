"""The scripts as processes of their own: help, mistakes, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run_script(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("script", ["train_mt10.py", "train_mt50.py", "train.py", "evaluate.py"])
def test_help_of_each_script(script: str, tmp_path: Path) -> None:
    result = run_script(script, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {script}")


def test_help_takes_less_than_a_second_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from mtrl.cli.commands import main_train; code = main_train(['--help'], preset='mt10');"
        "heavy = {'torch', 'gymnasium', 'metaworld', 'mujoco', 'mtrl.training.run'} & set(sys.modules);"
        "print(*sorted(heavy), file=sys.stderr, end=''); raise SystemExit(code)"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        seconds.append(time.perf_counter() - began)
        assert (result.returncode, result.stderr) == (0, "")
    assert min(seconds) < 1.0


def test_help_cut_off_by_a_pager_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} {SCRIPTS / 'train.py'} --help | head -1"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_mistake_in_a_real_process(tmp_path: Path, encoding: str) -> None:
    result = run_script("train_mt10.py", "--device", "gpu", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stdout) == (2, "")
    choices = "('auto', 'cpu', 'cuda')"
    assert (
        result.stderr
        == f"error: invalid choice 'gpu' for argument '--device'. Expected one of {choices}. See --help.\n"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("train.py", ["--resume", "absent"]), ("train_mt10.py", ["--resume", "."]), ("evaluate.py", ["absent"])],
)
def test_a_directory_without_a_run_is_refused_by_the_real_training(
    tmp_path: Path, script: str, arguments: list[str]
) -> None:
    result = run_script(script, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "is not a run directory" in result.stderr
    assert "Traceback" not in result.stderr
    assert os.listdir(tmp_path) == []
