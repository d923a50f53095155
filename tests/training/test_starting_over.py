"""What `resume_or_start` may delete: a run that ended before its first checkpoint, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mtrl.config.presets import save_config
from mtrl.errors import UserError
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


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_lines_after_as_many_checkpoints_as_may_fail_are_kept(name: str, begun: Path) -> None:
    config = resolve(counting())
    # A full disk, on which not even their folder could be made: the run gives up when the fourth begins.
    _line(begun, name, 100)
    assert not is_complete_without_checkpoints(config, begun)
    with pytest.raises(UserError, match=r"seed 0 \(here 1\).*holds 100 vector steps .*delete that directory"):
        is_complete_without_checkpoints(resolve(counting(seed=1)), begun)
    _line(begun, name, 110)
    before = _files(begun)
    with pytest.raises(UserError, match="holds 110 vector steps of a run whose checkpoints"):
        resume_or_start(config, begun)
    assert _files(begun) == before


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
