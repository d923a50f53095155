"""Whole runs: resume, isolation, reproduction on the counting suite; two runs of real Meta-World."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrl import Config, train
from mtrl.cli.train import main as main_train
from mtrl.combiners import COMBINERS
from mtrl.config.presets import save_config
from mtrl.config.schema import EnvConfig, EvalConfig, NetworkConfig, ReplayConfig, SacConfig
from mtrl.envs.metaworld.tasks import BENCHMARKS
from mtrl.errors import UserError
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.training.run import evaluate_run, resume_training
from mtrl.training.stepper import Stepper
from tests.helpers.checkpoints import assert_same, stored_rows
from tests.helpers.counting_env import CountingSuite
from tests.helpers.faults import before_each_step
from tests.helpers.killed_runs import kill_and_resume, wait_for
from tests.helpers.loss_methods import sac_options
from tests.helpers.short_runs import COUNTING, TASKS, assert_same_run, config, counting, lines

pytestmark = pytest.mark.usefixtures("worker_threads")

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
# cagrad has every ingredient, below, and agents continue with a method of every family.
QUICK = {"famo"}
METHODS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(COMBINERS)]


def state_of(run: Path) -> dict[str, Any]:
    return load_checkpoint(run)[1]


@contextlib.contextmanager
def stopped_at(number: int) -> Iterator[None]:
    """SIGTERM arrives in this vector step."""

    def stop(stepper: Stepper, step: int) -> None:
        if step + 1 == number:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        before_each_step(patch, stop)
        yield


# Options of which a default run says nothing; a method per network.
VARIANTS: dict[str, dict[str, Any]] = {
    **{
        f"{name} on the critics": {"critic_method": name, "actor_method": "mean"}
        for name in ("famo", "gradnorm", "uw")
    },
    "bmtl by deviation": {"method": "bmtl", "method_options": {"unit": "deviation"}},
    "sdmgrad_os in an order": {"method": "sdmgrad_os", "method_options": {"sampled": 1, "order": (1, 0)}},
    "turns in an order": {"method": "turns", "method_options": {"order": (1, 0), "base": "nash_mtl"}},
    "every third": {"method": "every", "method_options": {"refresh_every": 3, "base": "nash_mtl"}},
    "affinity of adatask": {"method": "affinity", "method_options": {"base": "adatask"}},
    "gaussian dropgrad": {"method": "dropgrad", "method_options": {"kind": "gaussian", "base": "fairgrad"}},
}


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_equals_uninterrupted(method: str, tmp_path: Path) -> None:
    assert_resumes(counting(method=method, method_options=sac_options(method)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_options_and_methods_per_network_resume_as_well(variant: str, tmp_path: Path) -> None:
    assert_resumes(counting(**VARIANTS[variant]), tmp_path)


def assert_resumes(settings: Config, folder: Path) -> None:
    """A run that is stopped and resumed equals one that is not."""
    whole, parts = folder / "whole", folder / "parts"
    train(settings, whole)
    with stopped_at(25):  # every episode and the log's means are halfway
        assert train(settings, parts).steps == 25
    assert resume_training(parts).exit_code == 0
    assert_same_run(whole, parts)


@pytest.mark.dear
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_to_the_process_group_saves_and_exits_with_its_code(
    number: int, code: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPTS / "train.py"), "--preset", "debug", "--run-dir", str(run)]
    command += ["--suite", COUNTING["suite"], "--tasks", *COUNTING["tasks"], "--steps", "100000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_for(lambda: process.poll() is not None or (run / "checkpoints/step_000000060").exists())
        os.killpg(process.pid, number)  # a terminal sends Ctrl-C to the workers as well
        output = process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert f"--resume {run}" in output
    step, _ = load_checkpoint(run)
    assert step == int(output.split("stopped at vector step ")[1].split(";")[0].replace(",", ""))


@pytest.mark.parametrize(("steps", "untrained"), [(14, True), (17, False)])
def test_a_run_that_ends_before_its_first_update_says_so(
    steps: int, untrained: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(counting(steps=steps), run_dir=tmp_path / "run")  # 15 vector steps of warm-up
    assert ("the agent has made no update" in capsys.readouterr().err) == untrained


def test_evaluation_leaves_training_untouched(tmp_path: Path, undisturbed: Path) -> None:
    often = tmp_path / "often"  # eight evaluations of three episodes; the other has one on its way, of one
    train(counting(eval=EvalConfig(interval=7, episodes_per_task=3, final_episodes_per_task=2)), often)
    assert_same(state_of(often), state_of(undisturbed))
    last = [lines(run / "evaluations.jsonl")[-1]["tasks"] for run in (often, undisturbed)]
    assert last[0] == last[1]


@pytest.mark.dear
@pytest.mark.processes
def test_worker_count_does_not_change_the_run(tmp_path: Path, undisturbed: Path) -> None:
    train(counting(env=EnvConfig(max_episode_steps=20, num_workers=2)), tmp_path / "two")
    assert_same_run(undisturbed, tmp_path / "two")


def test_other_seeds_give_other_runs(tmp_path: Path, undisturbed: Path) -> None:
    train(counting(seed=1), tmp_path / "other")
    assert not torch.equal(*(stored_rows(state_of(run)) for run in (undisturbed, tmp_path / "other")))


def test_the_true_final_observation_is_stored_at_truncation_and_bootstrapped(tmp_path: Path) -> None:
    train(counting(steps=40), tmp_path / "run")
    rows = stored_rows(state_of(tmp_path / "run"))
    obs, alive, following = rows[..., :8], rows[..., 13], rows[..., 14:]
    assert bool((alive == 1).all())
    steps = torch.arange(20.0).repeat(2)
    for task in range(2):
        assert torch.equal(obs[task, :, 0], steps)  # of the running episode
        assert torch.equal(following[task, :, 0], steps + 1)  # to 20, not to the 0 of the next episode
        assert torch.equal(following[task, :, 2], obs[task, :, 2])  # of the same episode
        assert obs[task, 20, 2] == obs[task, 19, 2] + 1


def test_evaluations_may_have_longer_episodes_than_training(tmp_path: Path) -> None:
    """The counting rewards of an episode of N steps sum to N (N + 1) / 2 + 100 N times the task's code."""
    evaluation = EvalConfig(interval=60, final_episodes_per_task=1, max_episode_steps=30)
    result = train(counting(eval=evaluation), tmp_path / "run").evaluation
    assert result is not None
    assert result.episode_return.tolist() == [[465.0 + 3000.0], [465.0 + 6000.0]]
    trained = lines(tmp_path / "run/metrics.jsonl")[-1]["rollout/ep_rew_mean"]
    assert trained == 210.0 + (2000.0 + 4000.0) / 2


def test_a_policy_evaluates_without_what_only_training_needs(
    tmp_path: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    for name in ("replay.pt", "agent.pt", "envs.pt"):
        (tmp_path / "run/checkpoints/step_000000060" / name).unlink()
    assert evaluate_run(tmp_path / "run", episodes=2).episodes_per_task == 2
    output = capsys.readouterr()
    assert "checkpoint of vector step 60" in output.out  # not the one before it
    assert output.err == ""


def test_another_version_of_the_suite_is_refused_unless_allowed(
    half: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingSuite, "versions", lambda suite: {"counting": "2"})
    with pytest.raises(UserError, match="--allow-version-mismatch"):
        resume_training(half, steps=60)
    versions = json.loads((half / "versions.json").read_text())
    (half / "versions.json").write_text(
        json.dumps(versions | {"git_commit": "aaa", "torch": "2.6.0", "cpu": "a"})
    )
    assert resume_training(half, steps=60, allow_version_mismatch=True).steps == 60
    assert_same(state_of(half)["replay"], state_of(undisturbed)["replay"])
    resumed = json.loads((half / "versions.json").read_text())
    assert resumed["counting"] == f"{versions['counting']}, then 2"
    assert resumed["torch"] == f"2.6.0, then {versions['torch']}"
    assert resumed["cpu"] == versions["cpu"]


def test_what_the_suite_remarks_is_said_once_for_both_sets_of_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COUNTING_ENV_REMARK", "1")
    train(counting(steps=20), tmp_path / "run")
    assert capsys.readouterr().err == "warning: the counting suite was asked for a remark\n"


# Every option of the agent that keeps state of its own.
EVERY_INGREDIENT: dict[str, Any] = {
    "env": EnvConfig(max_episode_steps=20, envs_per_task=2),
    "replay": ReplayConfig(capacity_per_task=60, reward_scaling="return", n_step=3),
    "network": NetworkConfig(
        actor_width=16, critic_width=16, actor_depth=2, critic_depth=2, critic_block="residual",
        critic_loss="categorical", value_bins=11, observation_norm="warmup",
    ),
    "sac": SacConfig(batch_per_task=8, actor_every=3, noise_hold=8, noise_spread=2.0, q_reduce="mean",
        actor_average_rate=0.1, act_on_snapshot=True),
}  # fmt: skip


@pytest.mark.dear
def test_every_ingredient_of_the_recipe_survives_a_resume(tmp_path: Path) -> None:
    """Stopped in the middle of an episode, of held noise and between two steps of the actor."""
    assert_resumes(counting(method="cagrad", **EVERY_INGREDIENT), tmp_path)
    scales = lines(tmp_path / "whole" / "metrics.jsonl")[-1]["reward_scale"]
    assert min(scales.values()) > 0
    assert tuple(scales) == COUNTING["tasks"]


# -- real Meta-World ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.meta
def test_a_run_of_metaworld_resumes_as_well(tmp_path: Path) -> None:
    assert_resumes(config(steps=30), tmp_path)


@pytest.mark.slow
@pytest.mark.meta
def test_mt10_script_trains_evaluates_and_writes_everything(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(SCRIPTS / "train_mt10.py"), "--method", "cagrad", "--preset", "debug"]
    done = subprocess.run([*command, "--run-dir", str(run)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_everything_written(run, BENCHMARKS["MT10"])


@pytest.mark.slow
@pytest.mark.meta
def test_killed_and_resumed_is_bit_equal_to_undisturbed_on_metaworld(tmp_path: Path) -> None:
    flags = ["--tasks", *TASKS, "--method", "nash_mtl", "--preset", "debug", "--steps", "200"]
    flags += ["--train.checkpoint-interval", "50", "--train.num-threads", "1", "--env.num-workers", "1"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert main_train([*flags, "--run-dir", str(undisturbed)]) == 0
    kill_and_resume(flags, killed)
    assert_same_run(undisturbed, killed)


# -- the scripts --------------------------------------------------------------------------------------------


def test_a_training_by_flags_writes_everything(tmp_path: Path) -> None:
    flags = ["--suite", COUNTING["suite"], "--tasks", *COUNTING["tasks"], "--method", "cagrad"]
    assert main_train([*flags, "--preset", "debug", "--run-dir", str(tmp_path / "run")]) == 0
    assert_everything_written(tmp_path / "run", COUNTING["tasks"])


def assert_everything_written(run: Path, tasks: Sequence[str]) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.jsonl", "evaluations.jsonl", "checkpoints"} <= names
    evaluation = lines(run / "evaluations.jsonl")[-1]
    assert evaluation["final"]
    assert set(evaluation["tasks"]) == set(tasks)
    assert set(evaluation["tasks"][tasks[0]]) == {"success", "success_last", "return", "episodes"}
    metrics = lines(run / "metrics.jsonl")[-1]
    assert metrics["env_steps"] == len(tasks) * metrics["vector_step"]
    for key in ("train/critic_loss", "train/ent_coef", "time/fps", "grad/critic_conflict_fraction"):
        assert np.isfinite(metrics[key])
    assert max(metrics["weight"].values()) > min(metrics["weight"].values()) > 0


@pytest.mark.slow
def test_killed_and_resumed_is_bit_equal_to_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    slowly = counting(suite_options={"step_seconds": 0.02})  # so that it is killed on its way
    save_config(slowly, tmp_path / "slowly.yaml")
    kill_and_resume(["--preset", str(tmp_path / "slowly.yaml")], tmp_path / "killed")
    assert_same_run(undisturbed, tmp_path / "killed")
