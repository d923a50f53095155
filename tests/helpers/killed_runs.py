"""Runs in a process of their own that are killed on their way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mtrl.cli.train import main as main_train

ROOT = Path(__file__).resolve().parents[2]


def wait_for(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_and_resume(flags: list[str], run: Path, folder: Path = ROOT) -> None:
    """Train in a process of its own, kill it after its first checkpoint, and resume in this process.

    Code that flags name lies in `folder`, which is this process's working directory if it is not ROOT.
    """
    command = [sys.executable, str(ROOT / "scripts/train.py"), *flags, "--run-dir", str(run)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_for(lambda: process.poll() is not None or list((run / "checkpoints").glob("step_*")))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main_train(["--resume", str(run), "--trust"]) == 0
