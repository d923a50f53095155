"""Whole runs on Gymnasium environments: trained, resumed and evaluated like any other suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtrl import train
from mtrl.config.presets import load_config
from mtrl.config.schema import EnvConfig, ReplayConfig
from mtrl.errors import UserError
from mtrl.export.run import export_run
from mtrl.runs.checkpoint import load_checkpoint
from mtrl.training import run as run_module
from mtrl.training.run import evaluate_run, resume_training
from tests.helpers.short_runs import config, counting, lines
from tests.helpers.stateful_envs import name

ENVIRONMENTS = {
    "usual": {"id": "Pendulum-v1"},
    "short": {"id": "Pendulum-v1", "set": {"l": 0.5}, "kwargs": {"g": 5.0}},
}
CHANGES = {"suite": "gymnasium", "tasks": ("all",), "suite_options": {"environments": ENVIRONMENTS}}

pytestmark = pytest.mark.filterwarnings("ignore:Pendulum-v1 is registered with")


@pytest.mark.dear
def test_a_run_without_success_says_so_and_resumes_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(config(**CHANGES, steps=60), tmp_path / "whole")
    shown = "".join(capsys.readouterr())
    assert "success - (last step -)" in shown
    assert "nan" not in shown
    train(config(**CHANGES, steps=33), tmp_path / "parts")
    resumed = resume_training(tmp_path / "parts", steps=60)
    assert whole.evaluation is not None
    assert resumed.evaluation is not None
    np.testing.assert_array_equal(whole.evaluation.episode_return, resumed.evaluation.episode_return)
    assert np.isnan(whole.evaluation.success).all()
    assert (whole.evaluation.episode_return < 0).all()
    last = lines(tmp_path / "whole" / "evaluations.jsonl")[-1]
    assert last["mean_success"] is None
    assert {task: values["success"] for task, values in last["tasks"].items()} == {
        "usual": None,
        "short": None,
    }
    assert not any("rollout/success_rate" in line for line in lines(tmp_path / "whole" / "metrics.jsonl"))
    again = evaluate_run(tmp_path / "whole", episodes=2)
    np.testing.assert_array_equal(again.episode_return, whole.evaluation.episode_return)


def stateful(cls: str, **changes: Any) -> Any:
    return config(**{"suite": "gymnasium", "tasks": (name(cls),), "steps": 60, **changes})


@pytest.mark.dear
def test_environments_that_cannot_be_saved_begin_anew_on_resume_and_every_page_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    train(stateful("LateDeque", steps=33), path)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "LateDeque.last is a collections.deque" in said
    assert "a resumed run begins new episodes" in said
    assert "env.resume=restart" in said
    assert load_config(path / "config.yaml").env.resume == "restart"
    assert [env["env"] for env in load_checkpoint(path)[1]["envs"]["envs"]] == [None]
    resumed = resume_training(path, steps=60, trust=True)
    assert resumed.steps == 60
    assert resumed.evaluation is not None
    said = " ".join("".join(capsys.readouterr()).split())
    assert "episodes begin anew" in said
    assert "workers at vector steps" not in said  # no worker was replaced
    assert load_checkpoint(path)[1]["loop"]["restart_steps"] == []
    assert "begin anew" in (export_run(path, trust=True) / "README.md").read_text()


def test_exact_resume_is_refused_before_training_where_it_is_not_possible(tmp_path: Path) -> None:
    env = EnvConfig(max_episode_steps=20, num_workers=1, resume="exact")
    with pytest.raises(UserError, match=r"LateDeque\.last.*env\.resume=restart"):
        train(stateful("LateDeque", env=env), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.dear
def test_restart_can_be_asked_for(tmp_path: Path) -> None:
    env = EnvConfig(max_episode_steps=20, num_workers=1, resume="restart")
    train(counting(steps=20, env=env), tmp_path / "run")
    assert [env["env"] for env in load_checkpoint(tmp_path / "run")[1]["envs"]["envs"]] == [None, None]


@pytest.mark.dear
def test_a_state_that_fails_in_the_middle_of_a_run_turns_it_into_one_that_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    monkeypatch.setenv("COUNTING_ENV_UNSAVABLE_AFTER", "10")
    train(counting(steps=30), path)
    assert "asked not to be saved" in "".join(capsys.readouterr())
    assert load_config(path / "config.yaml").env.resume == "restart"
    assert resume_training(path, steps=40, trust=True).steps == 40


@pytest.mark.dear
def test_evaluations_of_suites_that_draw_are_those_of_the_undisturbed_run_after_a_resume(
    tmp_path: Path,
) -> None:
    changes = {"suite": "tests.helpers.stateful_envs:DrawingSuite", "tasks": ("one", "two")}
    whole = train(config(**changes, steps=60), tmp_path / "whole")
    train(config(**changes, steps=33), tmp_path / "parts")
    resume_training(tmp_path / "parts", steps=60, trust=True)
    first, last = (lines(tmp_path / run / "evaluations.jsonl")[-1] for run in ("whole", "parts"))
    assert first["tasks"] == last["tasks"]
    assert whole.evaluation is not None
    again = evaluate_run(tmp_path / "whole", episodes=2, trust=True)
    np.testing.assert_array_equal(again.episode_return, whole.evaluation.episode_return)


@pytest.mark.dear
def test_success_that_only_some_infos_tell_is_logged_and_evaluated(tmp_path: Path) -> None:
    done = train(stateful("OnlyWhereSolved"), tmp_path / "run")
    assert done.evaluation is not None
    assert done.evaluation.success.tolist() == [[0.0, 1.0]]  # seeds 0 and 1
    logged = [line.get("rollout/success_rate") for line in lines(tmp_path / "run" / "metrics.jsonl")]
    assert None not in logged[1:]


@pytest.mark.dear
def test_the_card_says_to_which_bounds_actions_are_stretched(tmp_path: Path) -> None:
    train(stateful("Integers", steps=20), tmp_path / "run")
    card = (export_run(tmp_path / "run", trust=True) / "README.md").read_text()
    assert f"| {name('Integers')} | [0] | [4] |" in card
    assert "low + (action + 1) / 2 * (high - low)" in card


def test_a_lack_of_memory_shows_before_an_environment_is_started_or_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_environments(*_: Any, **__: Any) -> None:
        raise AssertionError("environments were started")

    monkeypatch.setattr(run_module, "build_envs", no_environments)
    with pytest.raises(UserError, match=r"replay buffers need.*GiB"):
        train(counting(replay=ReplayConfig(capacity_per_task=10**12)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
