"""What counts as complete, what resume finishes, and disks that are full. On the counting suite."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrl import train
from mtrl.config.schema import EvalConfig, NetworkConfig, TrainConfig
from mtrl.errors import UserError
from mtrl.runs.checkpoint import load_checkpoint, save_checkpoint
from mtrl.runs.jsonl import JsonLines
from mtrl.training.evaluate import evaluate
from mtrl.training.events import Event
from mtrl.training.run import evaluate_run, resume_or_start, resume_training
from mtrl.training.stepper import Stepper
from tests.helpers.faults import before_each_step, full_disk
from tests.helpers.short_runs import assert_same_run, counting, evaluated, lines

pytestmark = pytest.mark.usefixtures("worker_threads")


def test_at_one_step_the_checkpoint_is_written_while_the_evaluation_has_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []

    def look(*arguments: Any, **options: Any) -> Any:
        name = f"step_{30 * len(saved) + 30:09d}"
        deadline = time.monotonic() + 60
        while not (tmp_path / "run/checkpoints" / name).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        saved.append(load_checkpoint(tmp_path / "run")[0])
        return evaluate(*arguments, **options)

    monkeypatch.setattr("mtrl.training.loop.evaluate", look)
    settings = TrainConfig(warmup_steps=15, log_interval=10, checkpoint_interval=30, num_threads=1, sinks=())
    train(counting(train=settings), tmp_path / "run")
    assert saved == [30, 60]


def test_copies_of_an_evaluation_are_its_own_and_change_its_rounding_alone(tmp_path: Path) -> None:
    usual = dataclasses.replace(counting().eval, final_episodes_per_task=5)
    runs = {copies: tmp_path / f"{copies} copies" for copies in (1, 2)}
    for copies, path in runs.items():
        asked = dataclasses.replace(usual, envs_per_task=copies)
        train(counting(suite="tests.helpers.counting_env:AimingSuite", eval=asked), path)
    for one, other in zip(*(lines(path / "evaluations.jsonl") for path in runs.values()), strict=True):
        returns = [[task["return"] for task in line["tasks"].values()] for line in (one, other)]
        assert returns[0] == pytest.approx(returns[1], rel=1e-5)
        assert len(set(returns[0])) == len(returns[0]) > 1


def test_fewer_steps_than_are_done_are_refused(half: Path) -> None:
    with pytest.raises(UserError, match="already done 30 vector steps; --steps must be at least that"):
        resume_training(half, steps=20)


def test_a_longer_run_goes_on_from_a_complete_one_without_a_warning(
    half: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtrl.runs.checkpoint._MAP_FROM_BYTES", 0)
    open_files: list[str] = []

    def look(event: Event) -> None:
        open_files.append(Path("/proc/self/maps").read_text())

    assert resume_training(half, steps=60, callbacks=[look]).exit_code == 0
    assert not any("checkpoints/step_" in text for text in open_files)  # else the disk keeps old checkpoints
    assert "warning" not in capsys.readouterr().err
    assert evaluated(half) == [(30, False), (60, True)]
    assert_same_run(undisturbed, half)


@pytest.mark.parametrize("killed_at", [pytest.param(30, marks=pytest.mark.slow), 60])
def test_an_extended_run_that_is_killed_before_an_evaluation_ends_as_an_undisturbed_one(
    killed_at: int, half: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any, **options: Any) -> Any:
        if lines(half / "metrics.jsonl")[-1]["vector_step"] == killed_at:
            raise KeyboardInterrupt  # as a second Ctrl-C
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("mtrl.training.loop.evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            resume_training(half, steps=60)
    assert (60, True) not in evaluated(half)  # no evaluation of before counts as the final one
    assert resume_training(half, steps=60).evaluation is not None
    assert_same_run(undisturbed, half)


def test_an_evaluation_on_the_way_is_not_the_final_one_of_a_run_that_is_cut_short(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.kind == "evaluation":
            event.stop()

    run = tmp_path / "run"
    train(counting(), run, callbacks=[stop])
    assert evaluated(run) == [(30, False)]
    result = resume_training(run, steps=30)
    assert result.evaluation is not None
    assert result.evaluation.episodes_per_task == counting().eval.final_episodes_per_task
    assert evaluated(run)[-1] == (30, True)


# -- disks --------------------------------------------------------------------------------------------------


def refuse_checkpoints(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    def refuse(run: Path, step: int, *arguments: Any, **options: Any) -> Path:
        if step in steps:
            full_disk()
        return save_checkpoint(run, step, *arguments, **options)

    monkeypatch.setattr("mtrl.runs.checkpoint_writer.save_checkpoint", refuse)


EVERY_TEN = TrainConfig(warmup_steps=15, log_interval=5, checkpoint_interval=10, num_threads=1, sinks=())


def test_log_lines_that_succeed_do_not_excuse_checkpoints_that_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_checkpoints(monkeypatch, {20, 30, 40})
    with pytest.raises(UserError, match=r"checkpoint at vector step 40 .*3 failures in a row.*--resume"):
        train(counting(train=EVERY_TEN), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")[0] == 10


def test_a_run_that_has_no_checkpoint_is_to_be_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_checkpoints(monkeypatch, {10, 20, 30})
    with pytest.raises(UserError, match=r"30 .*no checkpoint yet.*--resume-or-start") as caught:
        train(counting(train=EVERY_TEN), tmp_path / "run")
    assert "intact" not in str(caught.value)


@pytest.mark.dear
def test_checkpoints_that_fail_now_and_then_are_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_checkpoints(monkeypatch, {10, 20, 40, 50})
    assert train(counting(train=EVERY_TEN), tmp_path / "run").exit_code == 0
    assert capsys.readouterr().err.count("No space left on device") == 4
    assert load_checkpoint(tmp_path / "run")[0] == 60


@pytest.mark.dear
def test_a_last_checkpoint_that_fails_is_an_error_and_the_run_can_be_finished(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        refuse_checkpoints(patch, {60})
        with pytest.raises(UserError, match=r"step 60 .*it was the last.*not complete.*--resume"):
            train(counting(), run)
    assert evaluated(run) == [(30, False)]
    assert resume_training(run).exit_code == 0
    assert_same_run(undisturbed, run)


@pytest.mark.dear
def test_a_final_evaluation_that_cannot_be_written_is_an_error_and_the_run_can_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "evaluation", full_disk)
        with pytest.raises(UserError, match=r"evaluation at vector step 60 .*it was the last"):
            train(counting(), tmp_path / "run")
    assert resume_training(tmp_path / "run").evaluation is not None
    assert evaluated(tmp_path / "run")[-1] == (60, True)


@pytest.mark.parametrize("what", ["save_config", "RunDirectory.write_versions", "JsonLines.open"])
def test_a_disk_that_is_full_from_the_start_is_one_sentence(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"mtrl.training.run.{what}", full_disk)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device\. Free space"):
        train(counting(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- resume or start ----------------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


def test_resume_or_start_starts_resumes_and_leaves_what_is_complete(
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"

    def killed_at(number: int) -> None:
        def kill(stepper: Stepper, step: int) -> None:
            if step == number:
                raise _Killed

        with monkeypatch.context() as patch, pytest.raises(_Killed):
            before_each_step(patch, kill)
            resume_or_start(counting(), run)

    killed_at(20)  # logged, before the first checkpoint
    with pytest.raises(UserError, match=f"--resume-or-start {run}"):
        resume_training(run)
    with pytest.raises(UserError, match=f"--resume-or-start {run}"):
        train(counting(), run)
    killed_at(40)  # started anew, past the first checkpoint
    with pytest.raises(UserError, match=r"another configuration: seed 0 \(here 1\)"):
        resume_or_start(counting(seed=1), run)
    assert resume_or_start(counting(), run).evaluation is not None
    assert_same_run(undisturbed, run)
    before = (run / "evaluations.jsonl").read_bytes()
    assert resume_or_start(counting(), run)[:3] == (0, None, run)
    assert "complete already" in capsys.readouterr().out
    assert (run / "evaluations.jsonl").read_bytes() == before


def test_lines_that_a_full_disk_refused_are_written_when_it_has_room(
    tmp_path: Path, undisturbed: Path
) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = {20: 2000, 40: unlimited[0]}  # two lines fit, checkpoints do not

    def bound(event: Event) -> None:
        if event.kind == "log" and event.vector_step in sizes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[event.vector_step], unlimited[1]))

    try:
        assert train(counting(), tmp_path / "run", callbacks=[bound]).exit_code == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert_same_run(undisturbed, tmp_path / "run")


def test_a_checkpoint_never_counts_what_no_log_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LogFull(JsonLines):
        flush = metrics = full_disk

    monkeypatch.setattr("mtrl.training.run.JsonLines", LogFull)
    with pytest.raises(UserError, match=r"log at vector step 25 .*3 failures in a row"):
        train(counting(), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


# -- the best policy ----------------------------------------------------------------------------------------


def set_scores(patch: pytest.MonkeyPatch, *scores: float) -> None:
    """Each evaluation has the next of these as its success."""
    left = iter(scores)

    def scored(policy: Any, envs: Any, episodes: int, **options: Any) -> Any:
        result = evaluate(policy, envs, episodes, **options)
        return result._replace(success=np.full_like(result.success, next(left)))

    patch.setattr("mtrl.training.loop.evaluate", scored)


def test_the_policy_of_the_best_evaluation_is_kept_and_stands_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(EVERY_TEN, keep_best=True, keep_checkpoints=5)
    often = EvalConfig(interval=10, episodes_per_task=1, final_episodes_per_task=1)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        # Of 10 to 40; 40 again, because the final evaluation becomes one on the way to 60; 50 and 60.
        set_scores(patch, 0.5, 0.9, 0.9, 0.7, 0.7, 0.0, 0.8)
        train(counting(train=settings, eval=often, steps=40), run)
        assert load_checkpoint(run / "best")[0] == 20
        train_state = {path.name for path in (run / "best/checkpoints/step_000000020").iterdir()}
        assert train_state == {"policy.pt", "evaluation.pt", "manifest.json"}
        resume_training(run, steps=60)
    assert load_checkpoint(run / "best")[0] == 20  # 0.8 is less than what the former process saw
    policy = load_checkpoint(run / "best")[1]["policy"]["parameters"]
    shutil.rmtree(run / "checkpoints")
    assert evaluate_run(run, episodes=1, best=True).episodes_per_task == 1
    assert policy.isfinite().all()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("activation: relu", "activation: tanh"))
    with pytest.raises(UserError, match=r"network\.activation relu \(here tanh\)"):
        evaluate_run(run, best=True)
    with pytest.raises(UserError, match=r"keeps no best policy"):
        shutil.rmtree(run / "best")
        evaluate_run(run, best=True)


@pytest.mark.dear
@pytest.mark.parametrize(("version", "next_score"), [("this", 0.85), ("former", 0.5)])
def test_a_worse_policy_does_not_replace_the_best_one_of_a_former_end_without_a_line(
    version: str, next_score: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(EVERY_TEN, keep_best=True)
    seldom = EvalConfig(interval=30, episodes_per_task=1, final_episodes_per_task=1)
    set_scores(monkeypatch, 0.8, 0.9, next_score)
    train(counting(train=settings, eval=seldom, steps=45), tmp_path / "run")
    if version == "former":  # which stored no score
        step, parts = load_checkpoint(tmp_path / "run/best")
        save_checkpoint(tmp_path / "run/best", step, {"policy": parts["policy"]}, keep=1)
    resume_training(tmp_path / "run", steps=50)
    assert evaluated(tmp_path / "run") == [(30, False), (50, True)]
    assert load_checkpoint(tmp_path / "run/best")[0] == 45


# -- evaluating what is kept --------------------------------------------------------------------------------


def test_a_checkpoint_of_any_kept_step_can_be_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = TrainConfig(
        warmup_steps=15, checkpoint_interval=15, keep_checkpoints=2, num_threads=1, sinks=()
    )
    train(counting(train=settings, steps=30), run)
    capsys.readouterr()
    assert evaluate_run(run, episodes=1, checkpoint=15).episodes_per_task == 1
    assert "checkpoint of vector step 15" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no checkpoint of vector step 20.*15, 30"):
        evaluate_run(run, checkpoint=20)
    with pytest.raises(UserError, match="Give one of them"):
        evaluate_run(run, checkpoint=15, best=True)


@pytest.mark.dear
def test_a_run_whose_tasks_have_numbers_in_a_file_goes_on_as_long_as_a_file_has_them(tmp_path: Path) -> None:
    rows, moved = tmp_path / "rows.json", tmp_path / "moved.json"
    rows.write_text('{"task-1": [1, 2], "task-2": [3, 4]}')
    network = NetworkConfig(task_identity="file", identity_file=str(rows))
    train(counting(train=EVERY_TEN, network=network, steps=10), tmp_path / "run")
    assert evaluate_run(tmp_path / "run", episodes=1).episodes_per_task == 1
    rows.rename(moved)
    elsewhere = NetworkConfig(task_identity="file", identity_file=str(moved))
    again = counting(train=EVERY_TEN, network=elsewhere, steps=10)
    assert resume_or_start(again, tmp_path / "run").steps == 10
    other = tmp_path / "other.json"
    other.write_text('{"task-1": [9, 2], "task-2": [3, 4]}')
    network = NetworkConfig(task_identity="file", identity_file=str(other))
    with pytest.raises(UserError, match=r"identity_file\.sha256"):
        resume_or_start(counting(train=EVERY_TEN, network=network, steps=10), tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace(str(rows), str(moved)))
    assert resume_training(tmp_path / "run", steps=20).steps == 20
    moved.write_text('{"task-1": [1, 2], "task-2": [3, 5]}')
    for go_on in (evaluate_run, partial(resume_training, steps=30)):
        with pytest.raises(UserError, match=r"identity_file\.sha256"):
            go_on(tmp_path / "run")
