"""Environments of Box2D and gymnasium-robotics from the command line, as docs/suites.md shows them.

They need the extra `gymnasium`; the CI job `slow` installs it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtrl.cli import launch

SMALL = (
    *("--steps", "40", "--env.num-workers", "1", "--env.max-episode-steps", "30"),
    *(
        "--train.warmup-steps",
        "20",
        "--train.checkpoint-interval",
        "20",
        "--eval.final-episodes-per-task",
        "1",
    ),
    *("--network.actor-width", "16", "--network.critic-width", "16", "--sac.batch-per-task", "8"),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("package", "flags"),
    [
        ("Box2D", "--tasks LunarLanderContinuous-v3"),
        ("Box2D", "--tasks BipedalWalker-v3"),
        ("gymnasium_robotics", "--tasks gymnasium_robotics:FetchReach-v4 --suite.flatten-observations"),
        ("gymnasium_robotics", "--tasks gymnasium_robotics:AdroitHandDoor-v1"),
    ],
)
def test_train_resume_evaluate_and_export(
    package: str, flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(package)
    run = str(tmp_path / "run")
    assert launch("mtrl.cli.train", ["--suite", "gymnasium", *flags.split(), "--run-dir", run, *SMALL]) == 0
    assert "env.resume=restart" in " ".join("".join(capsys.readouterr()).split())
    assert launch("mtrl.cli.train", ["--resume", run, "--steps", "60"]) == 0
    assert launch("mtrl.cli.evaluate", [run, "--episodes", "1"]) == 0
    assert launch("mtrl.cli.export", [run]) == 0
    policy = json.loads((tmp_path / "run" / "policy" / "policy.json").read_text())
    assert policy["vector_step"] == 60
    assert policy["config"]["env"]["resume"] == "restart"
