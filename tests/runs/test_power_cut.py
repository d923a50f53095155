"""What is on disk, and in which order, before a checkpoint has its name: a power cut keeps only that."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint


def test_a_checkpoint_is_synchronised_before_it_has_its_name_and_its_name_before_others_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 10, {"policy": {"x": torch.zeros(2)}}, keep=1)
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synchronise(descriptor: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        done.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synchronise)
    monkeypatch.setattr(os, "replace", rename)
    parts = {"policy": {"x": torch.ones(2)}, "replay": {"y": torch.ones(3)}}
    save_checkpoint(tmp_path, 20, parts, keep=1)
    temporary = next(name for kind, name in done if kind == "fsync" and name.endswith("step_000000020"))
    before = [name for kind, name in done[: done.index(("rename", "step_000000020"))] if kind == "fsync"]
    assert {"policy.pt", "replay.pt", "manifest.json", temporary} <= set(before)
    assert before.index(temporary) > max(map(before.index, ("policy.pt", "replay.pt", "manifest.json")))
    after = done[done.index(("rename", "step_000000020")) + 1 :]
    assert after[0] == ("fsync", "checkpoints")  # and only then is the former checkpoint renamed and deleted
    assert after[1][0] == "rename"
    assert "deleted" in after[1][1]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_checkpoints_are_written_where_directories_cannot_be_synchronised(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def synchronise(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or refused:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    refused = False
    monkeypatch.setattr(os, "fsync", synchronise)
    save_checkpoint(tmp_path, 10, {"policy": {"x": 3}}, keep=1)
    assert load_checkpoint(tmp_path) == (10, {"policy": {"x": 3}})
    refused = True  # a file that cannot be synchronised may be empty after a power cut
    with pytest.raises(OSError, match=os.strerror(number)):
        save_checkpoint(tmp_path, 20, {"policy": {"x": 4}}, keep=1)
