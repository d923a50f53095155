"""Checkpoints written beside training: what they hold, and how their outcome is told."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrl.runs.checkpoint import load_checkpoint
from mtrl.runs.checkpoint_writer import CheckpointWriter
from tests.helpers.checkpoints import assert_same


class Gate:
    """A part that is read when the gate opens."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> dict[str, Any]:
        self.reached.set()
        assert self.opened.wait(60)
        return {"value": 7}


def test_what_changes_while_it_is_written_is_saved_as_it_was(tmp_path: Path) -> None:
    gate = Gate()
    tensor, array = torch.arange(5.0), np.arange(4)
    state = {"gate": gate, "agent": {"deep": [tensor, (array,)]}}
    with CheckpointWriter(tmp_path, keep=1, suite={}) as writer:
        writer.begin(3, state)
        assert gate.reached.wait(60)
        assert writer.busy and not writer.done
        tensor.zero_()
        array[:] = 0
        gate.opened.set()
        assert writer.result() == tmp_path / "checkpoints/step_000000003"
        assert not writer.busy
    expected = {"gate": {"value": 7}, "agent": {"deep": [torch.arange(5.0), (np.arange(4),)]}}
    assert_same(load_checkpoint(tmp_path), (3, expected))


def test_leaving_waits_for_the_checkpoint_under_way(tmp_path: Path) -> None:
    gate = Gate()
    with pytest.raises(ZeroDivisionError), CheckpointWriter(tmp_path, keep=1, suite={}) as writer:
        writer.begin(3, {"gate": gate})
        threading.Timer(0.2, gate.opened.set).start()
        raise ZeroDivisionError
    assert load_checkpoint(tmp_path)[0] == 3


def test_leaving_at_once_abandons_it_and_leaves_nothing(tmp_path: Path) -> None:
    gate = Gate()
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(tmp_path, keep=1, suite={}) as writer:
        writer.begin(3, {"gate": gate, "agent": {}})
        assert gate.reached.wait(60)
        threading.Timer(0.2, gate.opened.set).start()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "checkpoints") == []


def test_a_failure_is_raised_where_the_outcome_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in its place")
    with CheckpointWriter(tmp_path, keep=1, suite={}) as writer:
        writer.begin(3, {"agent": {}})
        with pytest.raises(FileExistsError):
            writer.result()


def test_a_failure_nobody_asked_for_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").write_text("a file in its place")
    with CheckpointWriter(tmp_path, keep=1, suite={}) as writer:
        writer.begin(3, {"agent": {}})
    assert "checkpoint at vector step 3 could not be written" in capsys.readouterr().err
