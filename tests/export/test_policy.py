"""An exported policy acts as the agent in evaluations, bit for bit, with three packages alone."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn

import mtrl
from mtrl.config.schema import EnvConfig, NetworkConfig, PpoConfig, SacConfig
from mtrl.errors import UserError
from mtrl.export.run import export_run
from mtrl.networks.base import NETWORKS
from mtrl.training.build import build_envs
from mtrl.training.evaluate import evaluate
from tests.export.conftest import edit
from tests.helpers.counting_env import ACTION_DIM, OBS_DIM
from tests.helpers.short_runs import config as short_config
from tests.helpers.short_runs import lines, random_run

TASKS, COPIES = 2, 3
SMALL: dict[str, Any] = {"actor_width": 16, "critic_width": 16, "actor_depth": 2, "critic_depth": 2}


class TwoLayers(nn.Module):
    """An ordinary module as a user writes it."""

    def __init__(self, inputs: int, outputs: int, num_tasks: int, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x)
        return result


OWN = f"{__name__}:TwoLayers"
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "averaged actor": {"sac": SacConfig(batch_per_task=8, actor_average_rate=0.01)},
    "task heads and layer norm": {
        "network": NetworkConfig(**SMALL, heads="per_task", actor_layer_norm=True, activation="silu")
    },
    "no identity": {"network": NetworkConfig(**SMALL, task_identity="none")},
    "standardised": {"network": NetworkConfig(**SMALL, observation_norm="warmup")},
    "own module": {"network": NetworkConfig(architecture=OWN, options={"width": 12})},
    "embedding": {"network": NetworkConfig(**SMALL, task_identity="embedding")},
    **{name: {"network": NetworkConfig(**SMALL, architecture=name)} for name in NETWORKS if name != "mlp"},
    "ppo": {"agent": "ppo", "network": NetworkConfig(**SMALL, observation_norm="warmup")},
    **{
        f"ppo, {name}": {"agent": "ppo", "network": NetworkConfig(**SMALL, architecture=name)}
        for name in NETWORKS
        if name != "mlp"
    },
    "ppo, clipped": {"agent": "ppo", "ppo": PpoConfig(squash="clip", minibatches=1)},
}


def observations(rows: int = TASKS * COPIES) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(rows, OBS_DIM)).astype(np.float32) * 3


@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_actions_are_the_evaluations_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    deep = changes.get("network", NetworkConfig()).architecture in ("care", "soft_modules")
    size = 0.15 if deep else 0.3  # so that actions are within the bounds
    _, agent = random_run(tmp_path / "run", size=size, **changes)
    own = OWN if changes == CONFIGURATIONS["own module"] else None
    policy = mtrl.load_policy(export_run(tmp_path / "run"), architecture=own)
    obs = observations()
    wanted = agent.policy(COPIES)(obs)
    found, state = policy.predict(obs, state="mine")
    assert state == "mine"
    assert found.dtype == np.float32
    assert 0.01 < np.abs(wanted).mean() < 0.99
    assert found.tobytes() == wanted.tobytes()
    for index, task in enumerate(policy.task_names):
        rows = slice(index * COPIES, (index + 1) * COPIES)
        one = policy.for_task(task)
        # Products with fewer rows are rounded differently on some processors.
        np.testing.assert_allclose(one.predict(obs[rows])[0], wanted[rows], rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.predict(obs[rows][0])[0], wanted[rows][0], rtol=0, atol=1e-5)


@pytest.mark.dear
def test_the_run_s_own_final_evaluation_is_repeated_exactly(tmp_path: Path) -> None:
    config = short_config(
        suite="gymnasium",
        tasks=("usual", "light"),
        suite_options={
            "environments": {"usual": "Pendulum-v1", "light": {"id": "Pendulum-v1", "kwargs": {"g": 5.0}}}
        },
        env=EnvConfig(envs_per_task=2, max_episode_steps=20),
    )
    mtrl.train(config, run_dir=tmp_path / "run")
    policy = mtrl.load_policy(export_run(tmp_path / "run"))
    with build_envs(config, num_workers=2) as envs:
        result = evaluate(lambda obs: policy.predict(obs)[0], envs, config.eval.final_episodes_per_task)
    final = lines(tmp_path / "run" / "evaluations.jsonl")[-1]
    assert final["final"]
    assert result.task_means()["return"] == {task: row["return"] for task, row in final["tasks"].items()}


_ALONE = """
import sys
import numpy as np

ALLOWED = {*sys.stdlib_module_names, "torch", "torchgen", "numpy", "safetensors", "mtrl"}
# What torch itself cannot be imported without.
ALLOWED |= {"typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"refused: {name}", name=name)


sys.meta_path.insert(0, Refuse())
import mtrl

policy = mtrl.load_policy(sys.argv[1])
np.save(sys.argv[3], policy.predict(np.load(sys.argv[2]))[0])
"""


@pytest.mark.dear
def test_torch_numpy_and_safetensors_are_enough(tmp_path: Path) -> None:
    _, agent = random_run(tmp_path / "run", **CONFIGURATIONS["standardised"])
    folder = export_run(tmp_path / "run")
    np.save(tmp_path / "obs.npy", observations())
    files = [str(folder), str(tmp_path / "obs.npy"), str(tmp_path / "actions.npy")]
    command = [sys.executable, "-c", _ALONE, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = agent.policy(COPIES)(observations())
    assert np.load(tmp_path / "actions.npy").tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["standardised", "ppo", "ppo, clipped"])
def test_the_files_say_all_that_is_needed_to_act(name: str, tmp_path: Path) -> None:
    random_run(tmp_path / "run", **CONFIGURATIONS[name])
    folder = export_run(tmp_path / "run")
    tensors, spec = load_file(folder / "policy.safetensors"), json.loads((folder / "policy.json").read_text())
    arguments, x = spec["network"]["arguments"], observations()
    if spec["standardises_observations"]:
        x = (x - tensors["observation.mean"]) / tensors["observation.deviation"]
        assert 0 < (np.abs(x) > 10).sum() < x.size / 2  # the clip at ten deviations is seen at work
        x = np.clip(x, -10, 10)
    x = x.reshape(TASKS, COPIES, OBS_DIM)
    for layer in range(arguments["depth"]):
        x = x @ tensors[f"actor.{layer}.weight"][0].T + tensors[f"actor.{layer}.bias"][0]
        if layer == 0:
            x = x + tensors["actor.0.task"][0][:, None]
        x = np.maximum(x, 0)
    outputs = x @ tensors["actor.head.weight"][0].T + tensors["actor.head.bias"][0]
    raw = outputs[..., :ACTION_DIM].reshape(-1, ACTION_DIM)
    assert (np.abs(raw) > 1).any()
    assert spec["squash"] == ("clip" if name == "ppo, clipped" else "tanh")
    wanted = np.clip(raw, -1, 1) if spec["squash"] == "clip" else np.tanh(raw)
    found, _ = mtrl.load_policy(folder).predict(observations())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_a_squash_of_another_version_is_refused(exported: Path) -> None:
    edit(exported, lambda spec: spec.update(squash="sine"))
    with pytest.raises(UserError, match="is damaged"):
        mtrl.load_policy(exported)


def test_samples_follow_the_policy_s_gaussian(exported: Path) -> None:
    policy = mtrl.load_policy(exported, seed=3)
    rows = 4000
    obs = np.repeat(observations(TASKS), rows, axis=0) * 0.1  # small: actions stay away from the bounds
    mode = np.arctanh(policy.predict(obs)[0].astype(float))
    first = policy.predict(obs, deterministic=False)[0]
    second = policy.predict(obs, deterministic=False)[0]
    again = mtrl.load_policy(exported, seed=3).predict(obs, deterministic=False)[0]
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != second.tobytes()
    tensors = load_file(exported / "policy.safetensors")
    assert tensors["actor.head.bias"].shape == (1, 2 * ACTION_DIM)
    spread = np.arctanh(np.clip(first.astype(float), -1 + 1e-7, 1 - 1e-7)) - mode
    for task in np.split(spread, TASKS):
        deviation = task.std(axis=0)
        assert (deviation > 0.1).all()
        assert (np.abs(task.mean(axis=0)) < 5 * deviation / np.sqrt(rows)).all()


@pytest.mark.parametrize(
    "shape", [(TASKS * COPIES, OBS_DIM + 1), (TASKS + 1, OBS_DIM), (OBS_DIM,), (0, OBS_DIM)]
)
def test_other_observations_are_refused(exported: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="observations must have shape"):
        mtrl.load_policy(exported).predict(np.zeros(shape))


def test_an_unknown_task_gets_the_nearest_name(exported: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'task-1'"):
        mtrl.load_policy(exported).for_task("task1")


def test_a_network_whose_class_has_moved_is_found_where_one_says(tmp_path: Path) -> None:
    random_run(tmp_path / "run", **CONFIGURATIONS["own module"])
    folder = export_run(tmp_path / "run")
    wanted = mtrl.load_policy(folder, architecture=OWN).predict(observations())[0]
    edit(folder, lambda spec: spec["network"].update(architecture="gone_module:TwoLayers"))
    with pytest.raises(UserError, match="no module 'gone_module'"):
        mtrl.load_policy(folder, architecture="gone_module:TwoLayers")
    found = mtrl.load_policy(folder, architecture=OWN).predict(observations())[0]
    assert found.tobytes() == wanted.tobytes()


def test_the_card_tells_every_task_s_success_and_whose_parameters_these_are(tmp_path: Path) -> None:
    random_run(tmp_path / "run", step=30, critic_method="cagrad")
    evaluation = {
        "vector_step": 20, "final": False, "episodes_per_task": 4,
        "mean_success": 0.375, "mean_success_last": 0.25, "mean_return": 12.5,
        "tasks": {
            "task-1": {"success": 0.75, "success_last": 0.5, "return": 25.0, "episodes": 4},
            "task-2": {"success": None, "success_last": None, "return": 0.0, "episodes": 4},
        },
    }  # fmt: skip
    later = evaluation | {"vector_step": 40}
    text = "".join(json.dumps(line) + "\n" for line in (evaluation, later))
    (tmp_path / "run" / "evaluations.jsonl").write_text(text)
    (tmp_path / "run" / "versions.json").write_text('{"torch": "9.9.9"}')
    folder = export_run(tmp_path / "run")
    spec = json.loads((folder / "policy.json").read_text())
    assert spec["evaluation"] == evaluation
    assert spec["versions"]["torch"] == "9.9.9"
    card = (folder / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert "license" not in matter
    first, second = matter["model-index"][0]["results"]
    assert [metric["value"] for metric in first["metrics"]] == [0.75, 25.0]
    assert [metric["type"] for metric in second["metrics"]] == ["mean_reward"]
    assert "| task-1 | 0.75 | 0.50 | 25.0 |" in body
    assert "| task-2 | - | - | 0.0 |" in body
    assert spec["config"]["critic_method"] == "cagrad"
    assert "* actor method: mean" in body
    assert "* vector steps: 30 of 60, 1 environment per task" in body
    assert "at vector step 20; the exported parameters are newer, from vector step 30" in body


def test_nothing_of_the_user_s_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="something other than an exported policy"):
        export_run(run, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["README.md"]
    with pytest.raises(UserError, match="not a run directory"):
        export_run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    first = export_run(run, tmp_path / "out")
    assert export_run(run, tmp_path / "out") == first


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_an_export_that_was_killed_is_made_again_by_the_same_command(
    renames: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, left = os.replace, [renames]

    def replace(source: Any, target: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            export_run(run)
    folder = run / "policy"
    (folder / next(folder.glob(".tmp-*"))).rename(folder / ".tmp-1-policy.safetensors")
    export_run(run)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "policy.json", "policy.safetensors"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("name", ["mlp", "own module", "standardised"])
def test_the_programs_defaults_change_no_action(name: str, before: bool, tmp_path: Path) -> None:
    random_run(tmp_path / "run", step=30, **CONFIGURATIONS[name])
    folder = export_run(tmp_path / "run")
    obs = np.random.default_rng(0).normal(size=(TASKS, OBS_DIM))
    own = OWN if name == "own module" else None
    policy = mtrl.load_policy(folder, architecture=own)
    wanted = policy.predict(obs)[0]
    torch.set_default_dtype(torch.float64)
    try:
        policy = mtrl.load_policy(folder, architecture=own) if before else policy
        found, sampled = (policy.predict(obs, deterministic=sure)[0] for sure in (True, False))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == sampled.dtype == np.float32
    assert found.tobytes() == wanted.tobytes()
    torch.set_default_device("meta")
    try:
        policy = mtrl.load_policy(folder, architecture=own)
    finally:
        torch.set_default_device(None)
    assert policy.predict(obs)[0].tobytes() == wanted.tobytes()


def test_the_card_takes_any_name_of_a_task(tmp_path: Path) -> None:
    name = 'a "b" | c'
    suite: dict[str, Any] = {
        "suite": "gymnasium",
        "suite_options": {"environments": {name: "Pendulum-v1"}},
        "tasks": (name,),
    }
    random_run(tmp_path / "run", step=30, **suite)
    task = {"success": 0.75, "success_last": 0.5, "return": 25.0, "episodes": 4}
    line = {
        "vector_step": 30, "final": False, "episodes_per_task": 4, "tasks": {name: task},
        "mean_success": 0.75, "mean_success_last": 0.5, "mean_return": 25.0,
    }  # fmt: skip
    (tmp_path / "run/evaluations.jsonl").write_text(json.dumps(line) + "\n")
    card = (export_run(tmp_path / "run") / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert repr(name) in ast.unparse(ast.parse(code))
    assert r"\| c | 0.75 |" in card
