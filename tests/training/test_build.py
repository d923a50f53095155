from __future__ import annotations

import pytest
import torch

from mtrl.config import Config, EnvConfig
from mtrl.training.build import build_envs, training_workers


@pytest.mark.parametrize(
    ("device", "asked", "cores", "expected"),
    [("cuda", None, 16, 14), ("cuda", None, 2, 1), ("cuda", 16, 16, 16), ("cpu", None, 16, None)],
)
def test_on_cuda_two_cores_are_left_to_the_learner_unless_workers_are_asked_for(
    device: str, asked: int | None, cores: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtrl.training.build.available_cores", lambda: cores)
    config = Config(env=EnvConfig(num_workers=asked))
    assert training_workers(config, torch.device(device)) == expected


def test_evaluations_play_the_goals_of_the_runs_own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of another seed: published success rates are of these goals."""
    seeds: list[int] = []
    monkeypatch.setattr("mtrl.training.build.TaskVectorEnv", lambda suite, **how: seeds.append(how["seed"]))
    for evaluation in (False, True):
        build_envs(Config(seed=7, tasks=("reach-v3",)), num_workers=1, evaluation=evaluation)
    assert seeds == [7, 7]
