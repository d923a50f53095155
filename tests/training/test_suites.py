"""Whole runs on Gymnasium environments: trained, resumed and evaluated like any other suite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtrl import train
from mtrl.training.run import evaluate_run, resume_training
from tests.helpers.short_runs import config, lines

ENVIRONMENTS = {
    "usual": {"id": "Pendulum-v1"},
    "short": {"id": "Pendulum-v1", "set": {"l": 0.5}, "kwargs": {"g": 5.0}},
}
CHANGES = {"suite": "gymnasium", "tasks": ("all",), "suite_options": {"environments": ENVIRONMENTS}}

pytestmark = pytest.mark.filterwarnings("ignore:Pendulum-v1 is registered with")


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
