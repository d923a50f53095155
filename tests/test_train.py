"""Whole runs on real Meta-World: the script, resume, kill, Ctrl-C, non-finite numbers, isolation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrl import Config, train
from mtrl.checkpoint import load_checkpoint, save_checkpoint
from mtrl.cli import main_train
from mtrl.combiners import COMBINERS
from mtrl.config import EnvConfig, EvalConfig, NetworkConfig, ReplayConfig, SacConfig, TrainConfig
from mtrl.envs import MetaWorldVectorEnv
from mtrl.errors import EnvironmentFailure, NonFiniteError, UserError
from mtrl.evaluation import Evaluation
from mtrl.evaluator import Policy, evaluate
from mtrl.stepper import Stepper
from mtrl.train import resolve_device, resume_training
from tests.helpers.loss_methods import sac_options

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
TASKS = ("reach-v3", "drawer-close-v3")


def _config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "tasks": TASKS,
        "steps": 60,
        "device": "cpu",
        "env": EnvConfig(max_episode_steps=20),
        "replay": ReplayConfig(capacity_per_task=40),
        "network": NetworkConfig(actor_width=16, critic_width=16, actor_depth=2, critic_depth=2),
        "sac": SacConfig(batch_per_task=8),
        "train": TrainConfig(warmup_steps=15, log_interval=10, checkpoint_interval=25, num_threads=1),
        "eval": EvalConfig(interval=30, episodes_per_task=1, final_episodes_per_task=2),
    }
    return Config(**(values | changes))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _without_time(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "wall_s" and not key.startswith("time/")}


def _assert_equal_trees(left: Any, right: Any, where: str = "") -> None:
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            _assert_equal_trees(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            _assert_equal_trees(a, b, f"{where}[{index}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right), where
    else:
        assert left == right, where


def _assert_same_run(left: Path, right: Path) -> None:
    (left_step, left_state), (right_step, right_state) = load_checkpoint(left), load_checkpoint(right)
    assert left_step == right_step
    _assert_equal_trees(left_state, right_state)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        pairs = zip(_lines(left / name), _lines(right / name), strict=True)
        for a, b in pairs:
            assert _without_time(a) == _without_time(b)


def test_mt10_script_trains_evaluates_and_writes_everything(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPTS / "train_mt10.py"), "--method", "cagrad", "--preset", "debug"]
    done = subprocess.run([*command, "--run-dir", str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.jsonl", "evaluations.jsonl", "checkpoints"} <= names
    evaluation = _lines(run / "evaluations.jsonl")[-1]
    assert evaluation["final"]
    assert len(evaluation["tasks"]) == 10
    assert set(evaluation["tasks"]["reach-v3"]) == {"success", "success_last", "return", "episodes"}
    metrics = _lines(run / "metrics.jsonl")[-1]
    assert metrics["env_steps"] == 10 * metrics["vector_step"]
    for key in ("train/critic_loss", "train/ent_coef", "time/fps", "grad/critic_conflict_fraction"):
        assert np.isfinite(metrics[key])
    assert max(metrics["weight"].values()) > min(metrics["weight"].values()) > 0


@pytest.mark.parametrize("method", sorted(COMBINERS))
def test_stopped_and_resumed_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    chosen = {"method": method, "method_options": sac_options(method)}
    assert train(_config(**chosen), whole) == 0
    # A shorter run ends with an evaluation of its own; the curves must agree from its checkpoint on.
    assert (
        train(_config(**chosen, steps=37, eval=EvalConfig(interval=1000, final_episodes_per_task=1)), parts)
        == 0
    )
    (parts / "evaluations.jsonl").write_text((whole / "evaluations.jsonl").read_text().splitlines()[0] + "\n")
    config = (parts / "config.yaml").read_text().replace("interval: 1000", "interval: 30")
    (parts / "config.yaml").write_text(
        config.replace("final_episodes_per_task: 1", "final_episodes_per_task: 2")
    )
    assert resume_training(parts, steps=60) == 0
    left, right = load_checkpoint(whole)[1], load_checkpoint(parts)[1]
    _assert_equal_trees(left["agent"], right["agent"])
    _assert_equal_trees(left["replay"], right["replay"])
    _assert_equal_trees(left["envs"], right["envs"])
    last = [_without_time(_lines(run / "evaluations.jsonl")[-1]) for run in (whole, parts)]
    assert last[0] == last[1]


def test_killed_at_any_moment_and_resumed_is_bit_equal_to_undisturbed(tmp_path: Path) -> None:
    steps = ["--steps", "400", "--train.checkpoint-interval", "50", "--train.num-threads", "1"]
    command = [sys.executable, str(SCRIPTS / "train.py"), "--tasks", *TASKS, "--method", "nash_mtl"]
    command += ["--preset", "debug", *steps]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*command, "--run-dir", str(undisturbed)], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--run-dir", str(killed)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((killed / "checkpoints").glob("step_*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(np.random.default_rng().uniform(0.0, 0.5))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resume = [sys.executable, str(SCRIPTS / "train.py"), "--resume", str(killed)]
    subprocess.run(resume, check=True, capture_output=True)
    _assert_same_run(undisturbed, killed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_exits_with_its_code(number: int, code: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPTS / "train.py"), "--tasks", *TASKS, "--preset", "debug"]
    command += ["--steps", "100000", "--run-dir", str(run)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(process.pid, number)  # a terminal sends Ctrl-C to the workers as well
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert f"--resume {run}" in output
    step, _ = load_checkpoint(run)
    assert step == int(output.split("stopped at vector step ")[1].split(";")[0].replace(",", ""))


def test_evaluation_leaves_training_untouched(tmp_path: Path) -> None:
    often, never = tmp_path / "often", tmp_path / "never"
    train(_config(eval=EvalConfig(interval=7, episodes_per_task=3, final_episodes_per_task=1)), often)
    train(_config(eval=EvalConfig(interval=10_000, episodes_per_task=1, final_episodes_per_task=1)), never)
    _assert_equal_trees(load_checkpoint(often)[1], load_checkpoint(never)[1])
    assert (
        _lines(often / "evaluations.jsonl")[-1]["tasks"] == _lines(never / "evaluations.jsonl")[-1]["tasks"]
    )


def test_worker_count_does_not_change_the_run(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(_config(env=EnvConfig(max_episode_steps=20, num_workers=1)), one)
    train(_config(env=EnvConfig(max_episode_steps=20, num_workers=2)), two)
    _assert_equal_trees(load_checkpoint(one)[1]["agent"], load_checkpoint(two)[1]["agent"])


def test_other_seeds_give_other_runs(tmp_path: Path) -> None:
    train(_config(), tmp_path / "a")
    train(_config(seed=1), tmp_path / "b")
    left, right = (load_checkpoint(tmp_path / name)[1] for name in "ab")
    assert not torch.equal(left["agent"]["module"]["target"], right["agent"]["module"]["target"])
    assert not torch.equal(left["replay"]["rows"], right["replay"]["rows"])


def test_the_true_final_observation_is_stored_at_truncation_and_bootstrapped(tmp_path: Path) -> None:
    train(_config(steps=40, replay=ReplayConfig(capacity_per_task=40)), tmp_path / "run")
    rows = load_checkpoint(tmp_path / "run")[1]["replay"]["rows"]
    obs, alive, following = rows[..., :39], rows[..., 44], rows[..., 45:]
    assert bool((alive == 1).all())
    continued = (obs[:, 1:, :3] - following[:, :-1, :3]).abs().amax(-1)
    # Every successor is the next observation, except where step 20 ended the episode: there the hand was
    # still where it had been, not back at the start.
    assert float(continued[:, :19].max()) == 0.0
    assert float(continued[:, 19].min()) > 1e-3
    assert float((following[:, 19, :3] - obs[:, 19, :3]).norm(dim=-1).max()) < 0.05


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_reward_in_replay_stops_the_run_with_the_tasks_name(
    value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Stepper.vector_step

    def poison(self: Stepper, step: int) -> None:
        original(self, step)
        if step == 31:
            self.parts.replay._rows[1, :, 43] = value

    monkeypatch.setattr(Stepper, "vector_step", poison)
    with pytest.raises(NonFiniteError, match=r"critic in drawer-close-v3\."):
        train(_config(), tmp_path / "run")
    step, state = load_checkpoint(tmp_path / "run")
    assert step == 25
    assert torch.isfinite(state["agent"]["module"]["target"]).all()


def test_a_non_finite_action_never_reaches_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Stepper.vector_step

    def poison(self: Stepper, step: int) -> None:
        if step == 30:
            with torch.no_grad():
                self.parts.agent.actor.flat.vector.fill_(float("nan"))
        original(self, step)

    monkeypatch.setattr(Stepper, "vector_step", poison)
    with pytest.raises(NonFiniteError, match="reach-v3"):
        train(_config(), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")[0] == 25


def test_a_full_disk_is_survived_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def fail_once(*arguments: Any, **options: Any) -> Path:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return save_checkpoint(*arguments, **options)

    monkeypatch.setattr("mtrl.loop.save_checkpoint", fail_once)
    assert train(_config(), tmp_path / "run") == 0
    assert "No space left on device" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run")[0] == 60


def test_resuming_a_complete_run_is_refused_with_advice(tmp_path: Path) -> None:
    train(_config(steps=20), tmp_path / "run")
    with pytest.raises(UserError, match=r"is complete: 20 of 20 .* --steps"):
        resume_training(tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_without_a_gpu_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    code = main_train(
        ["--preset", "debug", "--device", "cuda", "--run-dir", str(run)], preset="mt10", tasks=TASKS
    )
    assert code == 2
    assert "--device auto" in capsys.readouterr().err
    assert not run.exists()
    assert resolve_device("auto") == torch.device("cpu")


def test_too_large_a_replay_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="replay buffers need"):
        train(_config(replay=ReplayConfig(capacity_per_task=10**12)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _kill_a_worker(monkeypatch: pytest.MonkeyPatch, at: set[int]) -> None:
    """Before these vector steps (counted from 0) a worker of the training environments dies."""
    original = Stepper.vector_step

    def kill(self: Stepper, step: int) -> None:
        if step in at:
            os.kill(self.parts.envs.worker_pids[0], signal.SIGKILL)
        original(self, step)

    monkeypatch.setattr(Stepper, "vector_step", kill)


def _kill_a_worker_before_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(policy: Policy, envs: MetaWorldVectorEnv, episodes: int) -> Evaluation:
        os.kill(envs.worker_pids[0], signal.SIGKILL)
        return evaluate(policy, envs, episodes)

    monkeypatch.setattr("mtrl.loop.evaluate", kill)


def test_a_killed_worker_is_replaced_and_nothing_invented_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_a_worker(monkeypatch, {30})
    assert train(_config(env=EnvConfig(max_episode_steps=20, num_workers=2)), tmp_path / "run") == 0
    message = capsys.readouterr().err
    assert "SIGKILL" in message
    assert any(task in message for task in TASKS)
    assert _lines(tmp_path / "run" / "metrics.jsonl")[-1]["env/restarts"] == 1.0
    state = load_checkpoint(tmp_path / "run")[1]
    rows = torch.roll(state["replay"]["rows"], -state["replay"]["next"], dims=1)  # steps 20 to 59
    obs, following = rows[..., :39], rows[..., 45:]
    mine, other = (0, 1) if torch.equal(rows[0, 9], rows[0, 10]) else (1, 0)
    assert torch.equal(rows[mine, 9], rows[mine, 10])  # step 30 repeats step 29
    assert not torch.equal(rows[other, 9], rows[other, 10])
    # Everything else continues the step before, except where an episode begins; the hand knows both.
    jumps = (obs[:, 1:, :3] - following[:, :-1, :3]).abs().amax(-1) > 1e-3
    assert jumps[other].nonzero().flatten().tolist() == [19]
    assert jumps[mine].nonzero().flatten().tolist() == [9, 10, 30]


def test_past_the_budget_a_checkpoint_is_written_and_the_run_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _kill_a_worker(monkeypatch, {30})
    env = EnvConfig(max_episode_steps=20, num_workers=2, max_restarts=0)
    with pytest.raises(
        EnvironmentFailure, match=r"SIGKILL(.|\n)*stopped at vector step 31; continue with --res"
    ):
        train(_config(env=env), tmp_path / "run")
    step, state = load_checkpoint(tmp_path / "run")
    assert step == 31
    assert [stored["env"] is None for stored in state["envs"]["envs"]].count(True) == 1
    monkeypatch.undo()
    assert resume_training(tmp_path / "run") == 0
    step, state = load_checkpoint(tmp_path / "run")
    assert step == 60
    assert torch.isfinite(state["replay"]["rows"]).all()


def test_the_script_exits_75_past_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _kill_a_worker(monkeypatch, {20})
    run = tmp_path / "run"
    flags = ["--preset", "debug", "--run-dir", str(run), "--env.max-restarts", "0"]
    assert main_train(flags, preset="mt10", tasks=TASKS) == 75
    message = capsys.readouterr().err
    assert "SIGKILL" in message
    assert f"--resume {run}" in message
    assert load_checkpoint(run)[0] == 21


def test_a_worker_killed_during_evaluation_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(_config(), tmp_path / "undisturbed")
    _kill_a_worker_before_every_evaluation(monkeypatch)
    train(_config(), tmp_path / "disturbed")
    first, second = (_lines(tmp_path / name / "evaluations.jsonl") for name in ("undisturbed", "disturbed"))
    assert [_without_time(line) for line in first] == [_without_time(line) for line in second]


def test_evaluation_workers_past_the_budget_end_the_run_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _kill_a_worker_before_every_evaluation(monkeypatch)
    with pytest.raises(EnvironmentFailure, match="stopped at vector step 30"):
        train(_config(env=EnvConfig(max_episode_steps=20, max_restarts=0)), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run")[0] == 30
