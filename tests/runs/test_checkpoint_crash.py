"""Checkpoints cut off by a kill or by a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mtrl
from mtrl.runs import checkpoint
from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers.checkpoints import assert_same, state_of

PACKAGE = Path(mtrl.__file__).parent

KILLED_SAVES = """
    import json, os, shutil, signal, sys, pathlib
    import torch
    from mtrl.runs import checkpoint
    from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint

    torch.set_num_threads(1)
    root = pathlib.Path(sys.argv[1])

    def state(value):
        return {"agent": {"weight": torch.full((400,), value)}, "counters": {"value": value}}

    def die_at(count):
        # Counts every write, sync, rename and removal; dies before the given one.
        left = [count]
        def wrap(owner, name):
            original = getattr(owner, name)
            def wrapped(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **kwargs)
            setattr(owner, name, wrapped)
        wrap(checkpoint._HashingFile, "write")
        for name in ("fsync", "replace", "unlink", "rmdir", "mkdir"):
            wrap(os, name)

    def kills(new_step):
        outcomes, finished = [], False
        while not finished:
            count = len(outcomes)
            run_dir = root / f"{new_step}-{count}"
            run_dir.mkdir()
            save_checkpoint(run_dir, 1, state(1.0), keep=1)
            pid = os.fork()
            if pid == 0:
                die_at(count)
                save_checkpoint(run_dir, new_step, state(2.0), keep=1)
                os._exit(0)
            finished = os.waitpid(pid, 0)[1] == 0
            reports = []
            step, loaded = load_checkpoint(run_dir, warn=reports.append)
            values = {loaded["counters"]["value"], *loaded["agent"]["weight"].tolist()}
            save_checkpoint(run_dir, 5, state(3.0), keep=1)
            outcomes.append(
                {"step": step, "values": sorted(values), "reports": reports,
                 "names": os.listdir(run_dir / "checkpoints")}
            )
        return outcomes

    print(json.dumps([kills(int(step)) for step in sys.argv[2:]]))
"""


def run_script(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.dear
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint_whole(tmp_path: Path) -> None:
    new_steps = (2, 1)  # another step, and the same one again
    found = json.loads(run_script(KILLED_SAVES, str(tmp_path), *map(str, new_steps)))
    for new_step, outcomes in zip(new_steps, found, strict=True):
        assert len(outcomes) > 20
        for outcome in outcomes:
            assert (outcome["step"], outcome["values"]) in [(1, [1.0]), (new_step, [2.0])]
            assert outcome["reports"] == []
            assert outcome["names"] == ["step_000000005"]  # the next save tidies up
        values = [outcome["values"][0] for outcome in outcomes]
        assert values[0] == 1.0 and values[-1] == 2.0 and values == sorted(values)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse writes beyond `size` bytes of a file, as a quota would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100, 1_000, 3_000])
def test_a_full_disk_raises_and_leaves_the_old_checkpoint_alone(tmp_path: Path, size: int) -> None:
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    large = {**state_of(2), "replay": torch.zeros(100_000)}
    with pytest.raises(OSError) as caught, largest_file(size):
        save_checkpoint(tmp_path, 2, large, keep=1)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path / "checkpoints") == ["step_000000001"]
    assert_same(load_checkpoint(tmp_path), (1, state_of(1)))
    save_checkpoint(tmp_path, 2, state_of(2), keep=1)
    assert load_checkpoint(tmp_path)[0] == 2


def test_a_device_without_space_raises_enospc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnFullDevice(checkpoint._HashingFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            os.dup2(os.open("/dev/full", os.O_WRONLY), self.fileno())

    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    monkeypatch.setattr(checkpoint, "_HashingFile", OnFullDevice)
    with pytest.raises(OSError) as caught:
        save_checkpoint(tmp_path, 2, state_of(2), keep=1)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path / "checkpoints") == ["step_000000001"]
