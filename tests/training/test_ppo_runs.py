"""Runs of PPO: stopped or killed in a rollout and in an update they end as undisturbed ones; it learns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mtrl
from mtrl import train
from mtrl.agents.ppo import agent as agent_module
from mtrl.agents.ppo.agent import PPOAgent
from mtrl.cli.train import main as main_train
from mtrl.config.presets import save_config
from mtrl.config.schema import Config, EnvConfig, EvalConfig, PpoConfig, TrainConfig
from mtrl.export.run import export_run
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.training.run import evaluate_run, resume_training
from tests.helpers.short_runs import assert_same_run, counting, lines

pytestmark = pytest.mark.usefixtures("worker_threads")

ROOT = Path(__file__).resolve().parents[2]
# Rollouts of 8 vector steps and updates of 2 x 4 minibatches; a log line falls into a rollout, another after
# an update, and an evaluation after the third update.
SETTINGS: dict[str, Any] = {
    "agent": "ppo",
    "steps": 30,
    "critic_method": "fairgrad",
    "actor_method": "pcgrad",
    "env": EnvConfig(envs_per_task=2, max_episode_steps=20, num_workers=1),
    "ppo": PpoConfig(rollout_steps=8, epochs=2, minibatches=4, value_norm="pop_art", final_lr_fraction=0.1),
    "train": TrainConfig(log_interval=4, checkpoint_interval=1_000, num_threads=1, sinks=()),
    "eval": EvalConfig(interval=24, episodes_per_task=1, final_episodes_per_task=1),
}


@pytest.fixture(autouse=True)
def one_minibatch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "SLICE_SECONDS", -1.0)


def test_a_stop_in_an_update_or_in_a_rollout_changes_no_number(tmp_path: Path) -> None:
    config, run = counting(**SETTINGS), tmp_path / "run"
    train(config, tmp_path / "undisturbed")
    made = [line["time/updates_per_step"] for line in lines(tmp_path / "undisturbed" / "metrics.jsonl")]
    assert made == [0, 2, 0, 2, 0, 2, 0, 0]  # 8 after each rollout, over the 4 vector steps of a line
    learn, act = PPOAgent.learn, PPOAgent.act

    def stop_in_update(self: PPOAgent, progress: float) -> None:
        learn(self, progress)
        if self.updates == 19 and self.behind():
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_in_rollout(self: PPOAgent, obs: Any) -> Any:
        if self.updates == 24 and self.rollout.position == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return act(self, obs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPOAgent, "learn", stop_in_update)
        assert train(config, run).steps == 24
    state = load_checkpoint(run)[1]["rollout"]
    assert (state["position"], state["epoch"], state["minibatch"]) == (8, 0, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPOAgent, "act", stop_in_rollout)
        assert resume_training(run).steps == 28
    assert resume_training(run).exit_code == 0
    assert_same_run(tmp_path / "undisturbed", run)
    assert [line["vector_step"] for line in lines(run / "metrics.jsonl") if "kl" in line] == [8, 16, 24]


_KILLED = """
import os, signal, sys, time
from pathlib import Path
from mtrl import train
from mtrl.agents.ppo import agent as agent_module
from mtrl.agents.ppo.agent import PPOAgent
from mtrl.config.presets import load_config
from mtrl.runs.directory import has_checkpoint

agent_module.SLICE_SECONDS = -1.0
config, run, where = load_config(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
learn, act = PPOAgent.learn, PPOAgent.act

def dies():
    while not has_checkpoint(run):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

def noted_learn(self, progress):
    if self.behind() and where == "update" and self.updates == 13:
        dies()
    learn(self, progress)
    if where == "update" and self.updates == 10:
        os.kill(os.getpid(), signal.SIGUSR1)

def noted_act(self, obs):
    if where == "rollout" and self.updates == 8:
        if self.rollout.position == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        if self.rollout.position == 6:
            dies()
    return act(self, obs)

PPOAgent.learn, PPOAgent.act = noted_learn, noted_act
train(config, run)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["update", "rollout"])
def test_a_run_that_is_killed_in_the_middle_ends_as_an_undisturbed_one(where: str, tmp_path: Path) -> None:
    config, run = counting(**SETTINGS), tmp_path / "run"
    train(config, tmp_path / "undisturbed")
    save_config(config, tmp_path / "config.yaml")
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "config.yaml"), str(run), where]
    killed = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = load_checkpoint(run)[1]["rollout"]
    found = (state["position"], state["epoch"], state["minibatch"])
    assert found == {"update": (8, 0, 2), "rollout": (3, 0, 0)}[where]
    assert resume_training(run).exit_code == 0
    assert_same_run(tmp_path / "undisturbed", run)


@pytest.mark.slow
def test_the_debug_preset_trains_evaluates_exports_and_reports(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["--preset", "debug", "--agent", "ppo", "--tasks", "reach-v3", "push-v3", "--device", "cpu"]
    methods = ["--method.critic", "fairgrad", "--method.critic.alpha", "1.0", "--method.actor", "pcgrad"]
    assert main_train([*arguments, *methods, "--ppo.value-norm", "pop_art", "--run-dir", str(run)]) == 0
    assert evaluate_run(run, episodes=1).episodes_per_task == 1
    policy = mtrl.load_policy(export_run(run))
    assert policy.task_names == ("reach-v3", "push-v3")
    from mtrl.cli.report import main as main_report

    assert main_report([str(run), "--out", str(tmp_path / "report")]) == 0


@pytest.mark.slow
def test_ppo_learns_to_swing_up_two_pendulums(tmp_path: Path) -> None:
    config = Config.from_preset(
        "pendulum",
        {
            "agent": "ppo",
            "tasks": ["weak gravity", "usual"],
            "steps": 5_000,
            "env": {"envs_per_task": 4},
            "eval": {"interval": 400, "episodes_per_task": 8},
            "ppo": {
                "rollout_steps": 400, "epochs": 8, "minibatches": 16, "gamma": 0.95, "actor_lr": 1e-3,
                "critic_lr": 1e-3, "value_norm": "pop_art",
            },
        },
    )  # fmt: skip
    assert train(config, tmp_path / "run").exit_code == 0
    evaluations = lines(tmp_path / "run/evaluations.jsonl")
    for task in config.tasks:
        first, last = (evaluations[index]["tasks"][task] for index in (0, -1))
        assert first["success"] == 0.0
        assert last["success"] > 0.8
        assert last["return"] > first["return"] + 500
