"""Run directories and logs that go away during a run, or come back with holes. On the counting suite."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mtrl import train
from mtrl.config.schema import EvalConfig, TrainConfig
from mtrl.errors import UserError
from mtrl.runs import checkpoint_writer
from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint
from mtrl.training.events import Event
from mtrl.training.run import resume_training
from tests.helpers.faults import full_disk
from tests.helpers.short_runs import counting, lines

pytestmark = pytest.mark.usefixtures("worker_threads")

EVERY_TEN = TrainConfig(
    warmup_steps=8, log_interval=10, checkpoint_interval=10, num_threads=1, sinks=(), keep_best=True
)
SHORT: dict[str, Any] = {
    "steps": 30,
    "train": EVERY_TEN,
    "eval": EvalConfig(interval=10, episodes_per_task=1, final_episodes_per_task=1),
}


ON_THE_WAY, AT_THE_END = ("log", 20), ("checkpoint", 30)


@pytest.mark.parametrize(
    ("log", "when"),
    [
        ("metrics.jsonl", ON_THE_WAY),
        ("evaluations.jsonl", AT_THE_END),
        pytest.param("metrics.jsonl", AT_THE_END, marks=pytest.mark.slow),
        pytest.param("evaluations.jsonl", ON_THE_WAY, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_whose_log_is_removed_or_replaced_stops(
    log: str, when: tuple[str, int], tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def act(event: Event) -> None:
        if (event.kind, event.vector_step) == when:
            (run / log).rename(run / "kept.jsonl")
            if log == "evaluations.jsonl":
                shutil.copy(run / "kept.jsonl", run / log)

    with pytest.raises(UserError, match=r"is gone|is another one now") as found:
        train(counting(**SHORT), run, callbacks=[act])
    assert "not complete" in str(found.value)


def test_another_run_in_the_place_of_a_renamed_one_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def act(event: Event) -> None:
        if event.kind == "log":
            run.rename(tmp_path / "elsewhere")
            run.mkdir()
            for name in ("config.yaml", "versions.json", "run.owner", "run.lock"):
                (run / name).write_text("of another run")

    with pytest.raises(UserError, match="is another one now"):
        train(counting(**SHORT), run, callbacks=[act])
    assert {path.read_text() for path in run.iterdir()} == {"of another run"}
    assert len(list(run.iterdir())) == 4


def test_lines_that_a_power_cut_has_taken_are_reported_and_doubled_ones_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(counting(**SHORT), run, callbacks=[lambda event: event.stop() if event.vector_step == 20 else None])
    kept = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{kept[1]}\n{kept[1]}\n")
    (run / "evaluations.jsonl").write_text("")
    resume_training(run)
    assert [line["vector_step"] for line in lines(run / "metrics.jsonl")] == [20, 30]
    said = capsys.readouterr().err
    assert "metrics.jsonl lacks 1 of its lines up to vector step 20 (first 10, last 10)" in said
    assert "evaluations.jsonl lacks 1 of its lines" in said


def test_the_log_is_on_disk_before_a_checkpoint_that_counts_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    original, replaced = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        original(descriptor)
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def rename_to(source: Any, target: Any) -> None:
        replaced(source, target)
        synced.append(Path(target).name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename_to)
    train(counting(**SHORT), tmp_path / "run")
    first = synced.index("step_000000010")
    assert {"metrics.jsonl", "evaluations.jsonl", "run"} <= set(synced[:first])
    between = synced[first : synced.index("step_000000020")]
    assert "metrics.jsonl" in between


def test_a_best_policy_that_could_not_be_written_is_still_to_be_beaten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tried = tmp_path / "run", []

    def save(place: Path, step: int, *arguments: Any, **options: Any) -> Path:
        if place.name == "best":
            tried.append(step)
            if len(tried) == 1:
                full_disk()
        return save_checkpoint(place, step, *arguments, **options)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", save)
    train(counting(**SHORT), run)
    assert tried[:2] == [10, 20]  # an equal or better policy was not taken for a worse one
    assert load_checkpoint(run / "best")[0] > 0


@pytest.mark.parametrize("left", ["none", "of an abandoned step"])
def test_the_best_policy_is_made_up_for_after_a_kill_while_it_was_saved(left: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(counting(**SHORT), run, callbacks=[lambda event: event.stop() if event.vector_step == 20 else None])
    best = run / "best/checkpoints"
    # As if the process had been killed after the line of its best evaluation.
    line = lines(run / "evaluations.jsonl")[0]
    score = {"vector_step": 20, "mean_success": 2.0, "mean_return": 1e9}
    with open(run / "evaluations.jsonl", "a") as file:
        file.write(json.dumps(line | score) + "\n")
    shutil.rmtree(best)
    if left != "none":
        save_checkpoint(run / "best", 25, {"policy": {}}, keep=1)
    (run / "best").mkdir(exist_ok=True)
    best.mkdir(exist_ok=True)
    (best / ".tmp-7-step_000000020").mkdir()
    resume_training(run)
    assert sorted(entry.name for entry in best.iterdir()) == ["step_000000020"]
