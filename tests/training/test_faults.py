"""Runs that meet trouble: non-finite numbers, impossible requests, workers that die."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mtrl import train
from mtrl.agents.base import Transitions
from mtrl.cli.train import main as main_train
from mtrl.config.schema import EnvConfig, EvalConfig
from mtrl.device.cuda import resolve_device
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.training.run import resume_training
from mtrl.training.stepper import Stepper
from tests.helpers.checkpoints import stored_rows
from tests.helpers.faults import before_each_step, kill_a_worker, kill_a_worker_in_evaluations
from tests.helpers.short_runs import (
    COUNTING,
    assert_same_run,
    counting,
    evaluated,
    lines,
    without_time,
)

NAMES = COUNTING["tasks"]
NO_RESTARTS = EnvConfig(max_episode_steps=20, num_workers=1, max_restarts=0)


def _poison_the_replay(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Store a reward of this value for the second task at vector step 31, as often as the replay has room."""
    original = Stepper.vector_step

    def poison(self: Stepper, step: int) -> None:
        original(self, step)
        if step == 31:
            obs, none = np.zeros((2, 8), np.float32), np.zeros(2, np.bool_)
            reward = np.array([0.0, value], np.float32)
            action = np.zeros((2, 4), np.float32)
            for _ in range(40):  # the whole replay
                self.state.agent.observe(Transitions(obs, action, reward, obs, none, none, none))

    monkeypatch.setattr(Stepper, "vector_step", poison)


@pytest.mark.parametrize("value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_a_non_finite_reward_in_replay_stops_the_run_with_the_tasks_name(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison_the_replay(monkeypatch, value)
    with pytest.raises(NonFiniteError, match=rf"critic in {NAMES[1]}\."):
        train(counting(), tmp_path / "run")
    step, state = load_checkpoint(tmp_path / "run")
    assert step == 25
    assert torch.isfinite(state["agent"]["update"]["target"]).all()


def test_a_non_finite_action_never_reaches_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(stepper: Stepper, step: int) -> None:
        if step == 30:
            actions = np.zeros((2, 4), np.float32)
            actions[0, 1] = np.nan
            monkeypatch.setattr(stepper.state.agent, "act", lambda obs: actions)

    before_each_step(monkeypatch, poison)
    with pytest.raises(NonFiniteError, match=NAMES[0]):
        train(counting(), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")[0] == 25


def test_resuming_a_complete_run_is_refused_with_advice(half: Path) -> None:
    with pytest.raises(UserError, match=r"is complete: it has done 30 vector steps of 30. .*--steps"):
        resume_training(half)


@pytest.mark.dear
def test_a_policy_that_has_failed_is_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison_the_replay(monkeypatch, float("nan"))
    settings = counting(eval=EvalConfig(interval=33, episodes_per_task=1))  # between two log lines
    with pytest.raises(NonFiniteError, match=rf"critic in {NAMES[1]}\."):
        train(settings, tmp_path / "run")
    assert not lines(tmp_path / "run/evaluations.jsonl")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_gpu_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code = main_train(["--preset", "debug", "--device", "cuda", "--run-dir", str(run)])
    assert code == 2
    assert "--device auto" in capsys.readouterr().err
    assert not run.exists()
    assert resolve_device("auto") == torch.device("cpu")


def test_a_killed_worker_is_replaced_and_nothing_invented_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_a_worker(monkeypatch, 30)
    assert (
        train(counting(env=EnvConfig(max_episode_steps=20, num_workers=2)), tmp_path / "run").exit_code == 0
    )
    message = capsys.readouterr().err
    assert "SIGKILL" in message
    assert any(task in message for task in NAMES)
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["env/restarts"] == 1.0
    state = load_checkpoint(tmp_path / "run")[1]
    rows = torch.roll(stored_rows(state), -state["replay"]["next"], dims=1)  # steps 20 to 59
    obs, following = rows[..., :8], rows[..., 14:]
    mine, other = (0, 1) if torch.equal(rows[0, 9], rows[0, 10]) else (1, 0)
    assert torch.equal(rows[mine, 9], rows[mine, 10])  # step 30 repeats step 29
    assert not torch.equal(rows[other, 9], rows[other, 10])
    # Everything else continues the step before, except where an episode begins.
    jumps = (obs[:, 1:] != following[:, :-1]).any(-1)
    assert jumps[other].nonzero().flatten().tolist() == [19]
    assert jumps[mine].nonzero().flatten().tolist() == [9, 10, 30]


@pytest.mark.dear
def test_a_resumed_run_counts_restarts_on_and_knows_which_steps_saw_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    kill_a_worker(monkeypatch, 30, 45)
    train(counting(steps=40, env=EnvConfig(max_episode_steps=20, num_workers=2)), run)
    assert load_checkpoint(run)[1]["loop"]["restart_steps"] == [31]
    capsys.readouterr()
    resume_training(run, steps=60)
    assert "workers at vector steps 31: an undisturbed run has other numbers" in capsys.readouterr().out
    assert load_checkpoint(run)[1]["loop"]["restart_steps"] == [31, 46]
    logged = [
        (line["vector_step"], line["env/restarts"], line.get("env/last_restart_step"))
        for line in lines(run / "metrics.jsonl")
    ]
    assert logged == [(10, 0, None), (20, 0, None), (30, 0, None), (40, 1, 31), (50, 2, 46), (60, 2, 46)]


@pytest.mark.dear
def test_past_the_budget_a_checkpoint_is_written_and_the_run_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_a_worker(monkeypatch, 30)
    env = EnvConfig(max_episode_steps=20, num_workers=2, max_restarts=0)
    with pytest.raises(
        EnvironmentFailure, match=r"SIGKILL(.|\n)*stopped at vector step 31; continue with --res"
    ):
        train(counting(env=env), tmp_path / "run")
    step, state = load_checkpoint(tmp_path / "run")
    assert step == 31
    assert [stored["env"] is None for stored in state["envs"]["envs"]].count(True) == 1
    monkeypatch.undo()
    assert resume_training(tmp_path / "run").exit_code == 0
    step, state = load_checkpoint(tmp_path / "run")
    assert step == 60
    assert torch.isfinite(stored_rows(state)).all()


def test_the_script_exits_75_past_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kill_a_worker(monkeypatch, 20)
    run = tmp_path / "run"
    flags = ["--preset", "debug", "--run-dir", str(run), "--env.max-restarts", "0"]
    flags += ["--suite", COUNTING["suite"], "--tasks", *NAMES]
    assert main_train(flags) == 75
    message = capsys.readouterr().err
    assert "SIGKILL" in message
    assert f"--resume {run}" in message
    assert load_checkpoint(run)[0] == 21


@pytest.mark.dear
def test_a_worker_killed_during_evaluation_changes_no_number(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_a_worker_in_evaluations(monkeypatch, 0, 1)
    train(counting(), tmp_path / "disturbed")
    first, second = (lines(run / "evaluations.jsonl") for run in (undisturbed, tmp_path / "disturbed"))
    assert [without_time(line) for line in first] == [without_time(line) for line in second]


@pytest.mark.dear
@pytest.mark.parametrize(
    "number", [pytest.param(0, id="on the way", marks=pytest.mark.slow), pytest.param(1, id="at the end")]
)
def test_an_evaluation_that_failed_is_made_on_resume(
    number: int, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = tmp_path / "failed"
    with monkeypatch.context() as patch:
        kill_a_worker_in_evaluations(patch, number)
        with pytest.raises(EnvironmentFailure, match=f"stopped at vector step {30 + 30 * number}; continue"):
            train(counting(env=NO_RESTARTS), failed)
    assert len(evaluated(failed)) == number
    result = resume_training(failed)
    assert result.exit_code == 0
    assert result.evaluation is not None
    assert result.steps == 60
    assert evaluated(failed) == [(30, False), (60, True)]
    assert_same_run(undisturbed, failed)


@pytest.mark.dear
def test_a_worker_that_fails_in_the_last_step_leaves_a_run_that_can_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_a_worker(patch, 59)
        with pytest.raises(EnvironmentFailure, match="stopped at vector step 60; continue with --resume"):
            train(counting(env=NO_RESTARTS), tmp_path / "run")
    assert evaluated(tmp_path / "run") == [(30, False)]
    assert resume_training(tmp_path / "run").evaluation is not None
    assert evaluated(tmp_path / "run") == [(30, False), (60, True)]
    with pytest.raises(UserError, match="is complete"):
        resume_training(tmp_path / "run")
