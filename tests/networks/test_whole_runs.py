"""Each network of each agent in a run of the debug preset: killed, resumed, evaluated, exported, reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mtrl
from mtrl.cli.evaluate import main as main_evaluate
from mtrl.cli.report import main as main_report
from mtrl.cli.train import main as main_train
from mtrl.export.run import export_run
from mtrl.networks.base import NETWORKS
from tests.helpers.killed_runs import kill_and_resume
from tests.helpers.short_runs import assert_same_run, lines

IDENTITY = {name: ["--network.task-identity", "embedding"] for name in ("mlp", "brc", "simba", "simba_v2")}
AGENTS = {
    "sac": "--train.warmup-steps 12",
    # Rollouts of 16 vector steps: the first checkpoint falls into one.
    "ppo": "--agent ppo --ppo.rollout-steps 16 --ppo.value-norm pop_art",
}


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_trains_resumes_evaluates_exports_and_reports(
    network: str, agent: str, tmp_path: Path
) -> None:
    text = f"--preset debug --tasks reach-v3 drawer-close-v3 --network {network} --method cagrad"
    text += f" --steps 100 --train.checkpoint-interval 20 {AGENTS[agent]}"
    flags = [*text.split(), *IDENTITY.get(network, []), "--train.num-threads", "1", "--env.num-workers", "1"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    kill_and_resume(flags, killed)
    assert main_train([*flags, "--run-dir", str(undisturbed)]) == 0
    assert_same_run(undisturbed, killed)
    assert main_evaluate([str(killed), "--episodes", "1"]) == 0
    policy = mtrl.load_policy(export_run(killed))
    obs = np.random.default_rng(0).normal(size=(len(policy.task_names), 39)).astype(np.float32)
    actions, _ = policy.predict(obs)
    assert actions.shape == (2, 4) and np.isfinite(actions).all()
    card = (killed / "policy" / "README.md").read_text()
    assert f"* network: {network} {'' if network == 'soft_modules' else '2x'}32" in card
    assert main_report([str(killed), "--out", str(tmp_path / "report")]) == 0
    last = lines(killed / "metrics.jsonl")[-1]
    assert np.isfinite(last["train/critic_loss"])
