"""What `resume_or_start` may delete: a run that ended before its first checkpoint, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mtrl.config.presets import save_config
from mtrl.errors import UserError
from mtrl.runs.checkpoint import save_checkpoint
from mtrl.runs.directory import RunDirectory
from mtrl.training.resolve import resolve
from mtrl.training.run import resume_or_start
from mtrl.training.starting_over import is_complete_without_checkpoints
from tests.helpers.short_runs import counting, lines


def _files(folder: Path) -> dict[Path, bytes]:
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if path.name != "run.lock"}


def _line(run: Path, name: str, step: int) -> None:
    with open(run / name, "a") as file:
        file.write(json.dumps({"vector_step": step, "wall_s": 1.0, "final": False}) + "\n")


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """What a run leaves that was killed before its first log line."""
    run = tmp_path / "run"
    run.mkdir()
    save_config(resolve(counting()), run / "config.yaml")
    (run / "versions.json").write_text("{}")
    return run


def test_a_finished_run_without_its_checkpoints_is_complete_and_cannot_be_extended(half: Path) -> None:
    shutil.rmtree(half / "checkpoints")
    before = _files(half)
    assert resume_or_start(counting(steps=30), half)[:3] == (0, None, half)
    with pytest.raises(UserError, match=r"holds 30 vector steps of a run whose checkpoints .*Choose another"):
        resume_or_start(counting(steps=60), half)
    with pytest.raises(UserError, match=r"another configuration: seed 0 \(here 1\)"):
        resume_or_start(counting(steps=30, seed=1), half)
    assert _files(half) == before
    assert lines(half / "evaluations.jsonl")[-1]["final"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", "best/checkpoints/step_000000010/x"])
def test_results_are_kept_even_if_they_end_before_the_first_checkpoint_is_due(name: str, begun: Path) -> None:
    (begun / name).parent.mkdir(parents=True, exist_ok=True)
    _line(begun, name, 10)  # signals, callbacks and a smaller `--steps` bring earlier checkpoints
    before = _files(begun)
    with pytest.raises(UserError, match=r"of a run whose checkpoints were removed"):
        resume_or_start(counting(), begun)
    assert _files(begun) == before


def test_a_run_that_never_wrote_a_checkpoint_starts_over_whatever_it_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException): ...

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("mtrl.training.run.build_agent", killed)
    monkeypatch.setattr(RunDirectory, "discard_if_empty", lambda run: False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Killed):
        resume_or_start(counting(), tmp_path)
    at_its_start = _files(tmp_path)
    # As on a full disk, on which not even the folder of the checkpoints could be made.
    _line(tmp_path, "metrics.jsonl", 1000)
    _line(tmp_path, "evaluations.jsonl", 1000)
    (tmp_path / "best/checkpoints/step_000001000").mkdir(parents=True)
    with pytest.raises(UserError, match=r"seed 0 \(here 1\).*holds 1,000 vector steps .*delete that direct"):
        resume_or_start(counting(seed=1), tmp_path)
    with pytest.raises(Killed):
        resume_or_start(counting(), tmp_path)
    assert _files(tmp_path) == at_its_start
    assert not (tmp_path / "best").exists()


def test_the_first_checkpoint_ends_the_time_in_which_a_run_may_be_started_over(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        run.mark_unsaved()
        assert (run.path / "run.unsaved").is_file()
        save_checkpoint(run.path, 10, {"loop": {}}, keep=1)
        assert not (run.path / "run.unsaved").exists()
        run.mark_unsaved()  # as if a kill had come between the two
        save_config(resolve(counting()), run.config_path)
    with RunDirectory.resume(tmp_path / "run") as run:
        assert not (run.path / "run.unsaved").exists()


def _of_the_user(run: Path) -> None:
    (run / "versions.json").unlink()
    path = run / "config.yaml"
    path.write_text(f"# my settings\n{path.read_text()}")


def _of_another_agent(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("agent: sac", "agent: sb3_sac"))


@pytest.mark.parametrize(
    ("change", "message"),
    [(_of_the_user, r"No run wrote .*would replace it"), (_of_another_agent, r"agent sb3_sac \(here sac\)")],
)
def test_a_configuration_that_no_run_of_it_wrote_is_refused_and_kept(
    change: Callable[[Path], None], message: str, begun: Path
) -> None:
    change(begun)
    before = _files(begun)
    with pytest.raises(UserError, match=message):
        resume_or_start(counting(), begun)
    assert _files(begun) == before


def test_a_run_that_was_killed_while_its_environments_started_may_be_started_over(begun: Path) -> None:
    (begun / "versions.json").unlink()
    assert not is_complete_without_checkpoints(resolve(counting(steps=90)), begun)
