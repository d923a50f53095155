"""A run directory that goes away, or whose configuration changes, under a run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtrl import train
from mtrl.config.presets import load_config
from mtrl.errors import UserError
from mtrl.export.run import export_run
from mtrl.training.events import Event
from mtrl.training.run import evaluate_run, resume_training
from tests.helpers.short_runs import assert_same_run, counting

pytestmark = pytest.mark.usefixtures("worker_threads")


def _moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def _unmounted(run: Path) -> None:
    _moved(run)
    run.mkdir()  # the bare mount point


def _taken(run: Path) -> None:
    _moved(run)
    shutil.copytree(run.with_name("elsewhere"), run)
    (run / "run.owner").write_text('{"pid": 1, "host": "other"}')


LOSSES = (shutil.rmtree, _moved, _unmounted, _taken)
EVENTS = (("log", 10), ("checkpoint", 25), ("evaluation", 60))


@pytest.mark.parametrize(
    ("lose", "kind", "step"),
    [
        # Each loss and each event once; all pairs are slow.
        pytest.param(lose, *event, marks=[] if row % len(EVENTS) == column else [pytest.mark.slow])
        for row, lose in enumerate(LOSSES)
        for column, event in enumerate(EVENTS)
    ],
)
def test_a_run_whose_directory_is_gone_stops_and_never_says_complete(
    lose: Callable[[Path], Any], kind: str, step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def lost(event: Event) -> None:
        if (event.kind, event.vector_step) == (kind, step) or (event.kind == kind == "checkpoint"):
            lose(run)

    with pytest.raises(UserError, match="removed, moved, unmounted or taken"):
        train(counting(), run, callbacks=[lost])
    assert "run in" not in capsys.readouterr().out.rpartition("step")[2]


@pytest.mark.dear
def test_a_run_that_was_moved_goes_on_at_its_new_place(tmp_path: Path, undisturbed: Path) -> None:
    run = tmp_path / "run"

    def moved(event: Event) -> None:
        if event.vector_step == 40 and event.kind == "log":
            while not (run / "checkpoints/step_000000025").exists():  # it is written beside the training
                time.sleep(0.01)
            _moved(run)

    with pytest.raises(UserError, match="--resume NEW_PLACE"):
        train(counting(), run, callbacks=[moved])
    assert resume_training(tmp_path / "elsewhere").exit_code == 0
    assert_same_run(undisturbed, tmp_path / "elsewhere")


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "network.actor_width": lambda values: values["network"].update(actor_width=24),
    "replay.capacity_per_task": lambda values: values["replay"].update(capacity_per_task=50),
    "replay.n_step": lambda values: values["replay"].update(n_step=3),
    "seed": lambda values: values.update(seed=5),
    "method": lambda values: values.update(method="cagrad", method_options={}),
    "tasks": lambda values: values.update(tasks=["task-2", "task-1"]),
    "train.log_interval": lambda values: values["train"].update(log_interval=5),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_configuration_is_refused_by_name_and_stays_as_it_is(key: str, half: Path) -> None:
    file = half / "config.yaml"
    values = yaml.safe_load(file.read_text())
    CHANGES[key](values)
    file.write_text(yaml.safe_dump(values))
    before = file.read_bytes()
    with pytest.raises(UserError, match=rf"written with another configuration: .*{key}.*\(here"):
        resume_training(half, steps=60)
    assert file.read_bytes() == before


def test_an_empty_configuration_is_refused_and_not_overwritten(half: Path) -> None:
    (half / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"another configuration"):
        resume_training(half, steps=60)
    assert (half / "config.yaml").read_text() == ""


def test_what_a_run_may_change_is_no_difference(half: Path, undisturbed: Path) -> None:
    file = half / "config.yaml"
    values = yaml.safe_load(file.read_text())
    values["env"]["step_timeout"] = 30.0
    values["train"]["keep_checkpoints"] = 3
    file.write_text(yaml.safe_dump(values))
    assert resume_training(half, steps=60).exit_code == 0
    assert_same_run(undisturbed, half)
    assert load_config(file).env.step_timeout == 30.0


@pytest.mark.parametrize("key", ["network.actor_width", "tasks"])
def test_a_policy_is_refused_under_a_configuration_that_is_not_its_own(key: str, half: Path) -> None:
    file = half / "config.yaml"
    values = yaml.safe_load(file.read_text())
    CHANGES[key](values)
    file.write_text(yaml.safe_dump(values))
    for use in (lambda: evaluate_run(half, episodes=1), lambda: export_run(half)):
        with pytest.raises(UserError, match="another configuration"):
            use()
