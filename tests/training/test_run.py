"""Whole runs on real Meta-World: the script, resume, kill, Ctrl-C, isolation."""

from __future__ import annotations

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

from mtrl import train
from mtrl.combiners import COMBINERS
from mtrl.config.schema import EnvConfig, EvalConfig, ReplayConfig
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.training.run import resume_training
from tests.helpers.loss_methods import sac_options
from tests.helpers.short_runs import TASKS, config, lines, without_time

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


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
        pairs = zip(lines(left / name), lines(right / name), strict=True)
        for a, b in pairs:
            assert without_time(a) == without_time(b)


def test_mt10_script_trains_evaluates_and_writes_everything(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPTS / "train_mt10.py"), "--method", "cagrad", "--preset", "debug"]
    done = subprocess.run([*command, "--run-dir", str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.jsonl", "evaluations.jsonl", "checkpoints"} <= names
    evaluation = lines(run / "evaluations.jsonl")[-1]
    assert evaluation["final"]
    assert len(evaluation["tasks"]) == 10
    assert set(evaluation["tasks"]["reach-v3"]) == {"success", "success_last", "return", "episodes"}
    metrics = lines(run / "metrics.jsonl")[-1]
    assert metrics["env_steps"] == 10 * metrics["vector_step"]
    for key in ("train/critic_loss", "train/ent_coef", "time/fps", "grad/critic_conflict_fraction"):
        assert np.isfinite(metrics[key])
    assert max(metrics["weight"].values()) > min(metrics["weight"].values()) > 0


@pytest.mark.parametrize("method", sorted(COMBINERS))
def test_stopped_and_resumed_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    chosen = {"method": method, "method_options": sac_options(method)}
    assert train(config(**chosen), whole).exit_code == 0
    # A shorter run ends with an evaluation of its own; the curves must agree from its checkpoint on.
    train(config(**chosen, steps=37, eval=EvalConfig(interval=1000, final_episodes_per_task=1)), parts)
    (parts / "evaluations.jsonl").write_text((whole / "evaluations.jsonl").read_text().splitlines()[0] + "\n")
    settings = (parts / "config.yaml").read_text().replace("interval: 1000", "interval: 30")
    settings = settings.replace("final_episodes_per_task: 1", "final_episodes_per_task: 2")
    (parts / "config.yaml").write_text(settings)
    assert resume_training(parts, steps=60).exit_code == 0
    left, right = load_checkpoint(whole)[1], load_checkpoint(parts)[1]
    _assert_equal_trees(left["agent"], right["agent"])
    _assert_equal_trees(left["replay"], right["replay"])
    _assert_equal_trees(left["envs"], right["envs"])
    last = [without_time(lines(run / "evaluations.jsonl")[-1]) for run in (whole, parts)]
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
    train(config(eval=EvalConfig(interval=7, episodes_per_task=3, final_episodes_per_task=1)), often)
    train(config(eval=EvalConfig(interval=10_000, episodes_per_task=1, final_episodes_per_task=1)), never)
    _assert_equal_trees(load_checkpoint(often)[1], load_checkpoint(never)[1])
    assert lines(often / "evaluations.jsonl")[-1]["tasks"] == lines(never / "evaluations.jsonl")[-1]["tasks"]


def test_worker_count_does_not_change_the_run(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(config(env=EnvConfig(max_episode_steps=20, num_workers=1)), one)
    train(config(env=EnvConfig(max_episode_steps=20, num_workers=2)), two)
    _assert_equal_trees(load_checkpoint(one)[1]["agent"], load_checkpoint(two)[1]["agent"])


def test_other_seeds_give_other_runs(tmp_path: Path) -> None:
    train(config(), tmp_path / "a")
    train(config(seed=1), tmp_path / "b")
    left, right = (load_checkpoint(tmp_path / name)[1] for name in "ab")
    assert not torch.equal(left["agent"]["update"]["target"], right["agent"]["update"]["target"])
    assert not torch.equal(left["replay"]["rows"], right["replay"]["rows"])


def test_the_true_final_observation_is_stored_at_truncation_and_bootstrapped(tmp_path: Path) -> None:
    train(config(steps=40, replay=ReplayConfig(capacity_per_task=40)), tmp_path / "run")
    rows = load_checkpoint(tmp_path / "run")[1]["replay"]["rows"]
    obs, alive, following = rows[..., :39], rows[..., 44], rows[..., 45:]
    assert bool((alive == 1).all())
    continued = (obs[:, 1:, :3] - following[:, :-1, :3]).abs().amax(-1)
    # Every successor is the next observation, except where step 20 ended the episode: there the hand was
    # still where it had been, not back at the start.
    assert float(continued[:, :19].max()) == 0.0
    assert float(continued[:, 19].min()) > 1e-3
    assert float((following[:, 19, :3] - obs[:, 19, :3]).norm(dim=-1).max()) < 0.05
