"""The scripts as processes of their own: help, mistakes, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.dear
@pytest.mark.parametrize("script", [pytest.param("train_mt50.py", marks=pytest.mark.slow), "evaluate.py"])
def test_help_of_each_script(script: str, tmp_path: Path) -> None:
    result = run_script(script, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {script}")


@pytest.mark.dear
def test_help_cut_off_by_a_pager_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} {SCRIPTS / 'train.py'} --help | head -1"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("utf-8", marks=pytest.mark.slow)])
def test_mistake_in_a_real_process(tmp_path: Path, encoding: str) -> None:
    result = run_script("evaluate.py", "run", "--device", "gpu", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr
        == "error: unknown value for --device 'gpu'. Did you mean 'cpu'? Valid: auto, cpu, cuda.\n"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.slow  # in one process: tests/cli/test_train.py and test_evaluate.py
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


def test_module_is_the_console_commands(tmp_path: Path) -> None:
    def module(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mtrl", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert module("evaluate", "--help").stdout.startswith("usage: mtrl evaluate")
    wrong = module("trian")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Did you mean 'train'?" in wrong.stderr


@pytest.mark.dear
@pytest.mark.parametrize(
    ("script", "package", "extra"),
    [
        ("train", "pydantic", "train"),
        ("success_picture", "matplotlib", "report"),
        ("film", "imageio", "video"),
        ("train_single_task", "stable_baselines3", "sb3"),
    ],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(
    script: str, package: str, extra: str
) -> None:
    code = (
        f"import runpy, sys; sys.modules['{package}'] = None\n"
        f"sys.path.insert(0, '{SCRIPTS}'); runpy.run_path('{SCRIPTS / script}.py', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=SCRIPTS.parent
    )
    message = f"error: '{package}' is not installed: pip install 'mtrl-torch[{extra}]'.\n"
    assert (result.returncode, result.stderr) == (2, message)
