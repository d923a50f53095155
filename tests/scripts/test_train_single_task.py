"""The single-task baseline writes runs like ours, with the sizes of the configuration."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtrl import train
from mtrl.config.presets import config_to_dict, differences, save_config
from mtrl.config.schema import EnvConfig, NetworkConfig, ReplayConfig, SacConfig
from mtrl.report.comparison import configuration, group
from mtrl.report.load import read_run
from mtrl.training.build import build_envs
from tests.helpers.counting_env import CountingSuite
from tests.helpers.short_runs import COUNTING, lines
from tests.helpers.short_runs import config as short_config

pytest.importorskip("stable_baselines3")

from mtrl_single_task.command import _THEIRS, main, make_model, not_carried_over


def test_the_run_is_one_of_ours_to_the_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CountingSuite, "reward_factors", {"task-2": 0.01})
    config = short_config(
        **COUNTING, critic_method="cagrad", env=EnvConfig(envs_per_task=2, max_episode_steps=20)
    )
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, max_episode_steps=25))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config_to_dict(config)))
    arguments = ["--preset", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "one task; found 2" in capsys.readouterr().err
    assert main([*arguments, "--task", "task-2", "--seed", "4"]) == 0
    run = read_run(tmp_path / "run")
    assert (run.finished, run.tasks, run.seed, run.method) == (True, ("task-2",), 4, "sb3_sac")
    evaluations = lines(tmp_path / "run" / "evaluations.jsonl")
    assert [(line["vector_step"], line["env_steps"], line["final"]) for line in evaluations] == [
        (30, 60, False),
        (60, 120, True),
    ]
    # The counting environment's reward: 100 times the code of the task, and the number of the step.
    # Evaluations have a horizon of their own, 25 steps.
    assert evaluations[-1]["mean_return"] == 25 * 200 + 25 * 26 / 2
    printed = capsys.readouterr().err
    assert "sac.max_grad_norm=1.0" in printed
    assert "reward_factor=0.01 of task-2" in printed


def test_a_configuration_of_another_agent_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--preset", "laptop", "--task", "reach-v3", "--run-dir", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "this trains SAC; found the agent ppo" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_table_holds_our_runs_beside_the_library_s(tmp_path: Path) -> None:
    config = short_config(**{**COUNTING, "tasks": ("task-2",)}, method="mean", seed=3)
    save_config(config, tmp_path / "c.yaml")
    assert main(["--preset", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "theirs")]) == 0
    train(config, run_dir=tmp_path / "ours")
    ours, theirs = (read_run(tmp_path / name) for name in ("ours", "theirs"))
    assert [row.method for row in group([ours, theirs])] == ["mean", "sb3_sac"]
    assert set(differences(configuration(ours), configuration(theirs))) == {"agent", "method"}


def test_sizes_and_rates_are_the_configuration_s() -> None:
    sac: dict[str, Any] = {"gamma": 0.9, "tau": 0.1, "batch_per_task": 7, "initial_temperature": 0.5}
    rates: dict[str, Any] = {"actor_lr": 1e-3, "critic_lr": 1e-3, "temperature_lr": 1e-3}
    config = short_config(
        **{**COUNTING, "tasks": ("task-3",)},
        sac=SacConfig(**sac, **rates, target_entropy=-1.5, max_grad_norm=None),
    )
    with closing(build_envs(config, num_workers=1)) as envs:
        model = make_model(config, envs)
    assert not_carried_over(config) == []
    assert (model.gamma, model.tau, model.batch_size) == (0.9, 0.1, 7)
    assert (model.learning_starts, model.buffer_size) == (15, 40)
    assert model.target_entropy == -1.5
    assert model.log_ent_coef.exp().item() == pytest.approx(0.5)
    assert [tuple(layer.shape) for layer in model.actor.latent_pi.parameters()][::2] == [(16, 8), (16, 16)]
    group = model.critic.optimizer.param_groups[0]
    assert (group["lr"], group["eps"]) == (1e-3, config.sac.adam_eps)


def test_no_setting_is_left_out_in_silence() -> None:
    """A new option of ours is carried over, named at the start, or without a meaning for one task's SAC."""
    carried = {
        *("gamma", "tau", "critic_lr", "actor_lr", "temperature_lr", "adam_eps", "batch_per_task"),
        *("initial_temperature", "target_entropy", "capacity_per_task", "activation"),
        *("actor_width", "actor_depth", "critic_width", "critic_depth"),
    }
    meaningless = {
        *("lr_hold_fraction", "temperature", "critic_loss_bound", "q_bound"),
        *("heads", "task_identity", "options", "value_bins", "value_low", "value_high"),
        *("actor_options", "critic_options", "identity_width", "identity_file"),
        *("return_bound", "return_quantile"),  # of reward_scaling=return, which is named
    }
    sections = {"sac": SacConfig, "network": NetworkConfig, "replay": ReplayConfig}
    for name, section in sections.items():
        fields = {field.name for field in dataclasses.fields(section)}
        assert fields == set(_THEIRS[name]) | (fields & (carried | meaningless)), name
