from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtrl import train
from mtrl.agents import AGENTS
from mtrl.combiners import make_combiner
from mtrl.config import Config, EnvConfig, NetworkConfig, PpoConfig, ReplayConfig, SacConfig, TrainConfig
from mtrl.config.presets import build_config, load_preset, preset_names
from mtrl.errors import UserError
from mtrl.training.resolve import bound_to_policy, resolve, unread_facts, why_unread


def test_every_option_is_written_out() -> None:
    config = resolve(Config(method="cagrad", method_options={"c": 0.4}, actor_method="sdmgrad"))
    assert config.method_options == {"c": 0.4, "rescale": 1, "solver": "exact", "preference": ()}
    assert config.actor_method_options == {"lam": 0.6, "solver": "exact", "batches": 1}
    assert config.suite_options == {"reward_version": "v2"}
    assert resolve(config) == config


def test_cagrad_has_the_papers_radius_for_each_benchmark() -> None:
    def radius(preset: str, **layer: Any) -> Any:
        return resolve(build_config(load_preset(preset), layer)).method_options

    assert radius("mt50", method="cagrad")["c"] == 0.5
    assert radius("mt10", method="cagrad")["c"] == 0.9
    of_mt50 = {name for name in preset_names() if load_preset(name).get("tasks") == ("MT50",)}
    of_mt50 -= {"overnight"}  # laptop's recipe
    assert len(of_mt50) == 6
    assert {radius(name, method="cagrad")["c"] for name in of_mt50} == {0.5}
    assert radius("mt50", method="cagrad", method_options={"c": 0.4})["c"] == 0.4
    assert radius("mt50", method="mean") == {"weights": ()}


def test_a_wrappers_base_has_the_options_of_the_preset_and_its_own() -> None:
    by_default = resolve(build_config(load_preset("mt50"), {"method": "fs_mtl"}))
    assert by_default.method_options["base_options"]["c"] == 0.5
    given = {"method": "fs_mtl", "method_options": {"base": "cagrad", "base_options": {"c": 0.3}}}
    assert resolve(build_config(load_preset("mt50"), given)).method_options["base_options"]["c"] == 0.3
    with pytest.raises(UserError, match=r"unknown option of method 'cagrad' 'd'"):
        resolve(Config(method="fs_mtl", method_options={"base_options": {"d": 1}}))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"method": "cagard"}, r"unknown method 'cagard'\. Did you mean 'cagrad'\?"),
    ({"critic_method": "cagard"}, r"unknown method 'cagard'"),
    ({"method": "cagrad", "method_options": {"d": 1}}, r"unknown option of method 'cagrad' 'd'"),
    ({"method": "cagrad", "method_options": {"c": "x"}}, r"method_options\.c must be .*; found 'x'"),
    ({"method": "cagrad", "method_options": {"c": True}}, r"method_options\.c must be .*; found true"),
    ({"method": "cagrad", "method_options": {"c": -1.0}}, "method cagrad: c must be"),
    ({"method": "imtl_g", "method_options": {"c": 0.5}}, r"method 'imtl_g' has no options; found 'c'"),
    ({"method_defaults": {"cagard": {"c": 1.0}}}, r"unknown method 'cagard'"),
    (
        {"replay": ReplayConfig(return_quantile=0.995)},
        r"return_quantile = 0\.995 needs replay\.reward_scaling = return; found none",
    ),
    (
        {"method_defaults": {"cagrad": {"c": True}}},
        r"method_defaults\.cagrad\.c must be a finite number; found true",
    ),
    (
        {"actor_method": "inverse_alpha", "sac": SacConfig(temperature="shared")},
        r"sac\.temperature=per_task; found shared, .* another method for the actor\.",
    ),
    ({"method": "famo"}, "shift minimum"),
    ({"actor_method": "famo"}, "shift minimum"),
    ({"suite": "metaword"}, "unknown suite 'metaword'. Did you mean 'metaworld'"),
    ({"suite_options": {"reward_version": "v3"}}, r"suite_options\.reward_version 'v3'"),
    ({"agent": "sca"}, "unknown agent 'sca'. Did you mean 'sac'"),
    ({"tasks": ("push-v2",)}, r"'push-v2'\. Did you mean 'push-v3'\?"),
    ({"tasks": ("MT10", "push-v3")}, "cannot be combined"),
    (
        {"train": TrainConfig(warmup_steps=64), "sac": SacConfig(batch_per_task=65)},
        r"sac\.batch_per_task must be at most .* = 64; found 65",
    ),
    (
        {"sac": SacConfig(initial_temperature=1e-8), "train": TrainConfig(on_divergence="stop")},
        r"initial_temperature must lie in \[1e-07, 10000\],",
    ),
    (
        {"sac": SacConfig(noise_spread=2.0)},
        r"noise_spread = 2 .* env\.envs_per_task = 1\. Raise env\.envs_per_task to 2",
    ),
    (
        {"replay": ReplayConfig(capacity_per_task=127)},
        r"replay\.capacity_per_task must hold sac\.batch_per_task = 128 .* found 127, of which 127 are",
    ),
    (
        {"replay": ReplayConfig(capacity_per_task=150), "env": EnvConfig(envs_per_task=100)},
        r"must hold .* = 128 transitions in .* env\.envs_per_task = 100; found 150, of which 100 are usable",
    ),
    ({"network": NetworkConfig(value_low=1.0, value_high=1.0)}, r"value_low must be below network\."),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_a_mistake_ends_training_from_python_before_anything_starts(
    values: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_workers(*_: Any, **__: Any) -> None:
        raise AssertionError("workers were started")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", no_workers)
    with pytest.raises(UserError, match=message):
        train(Config(**values), run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_sinks_are_known_or_ones_own_and_named_once() -> None:
    def named(*sinks: str) -> Config:
        return Config(train=TrainConfig(sinks=sinks))

    resolve(named("tensorboard", "nowhere.py:Mine"))  # an evaluation needs no sink, so none is imported
    with pytest.raises(UserError, match=r"unknown sink 'tensorbord'\. Did you mean 'tensorboard'"):
        resolve(named("tensorbord"))
    with pytest.raises(UserError, match="names wandb 2 times"):
        resolve(named("wandb", "wandb"))


def test_what_resolve_accepts_can_be_made() -> None:
    name, options = resolve(Config(method="fs_mtl", method_options={"base": "mgda"})).methods()["critic"]
    made: Any = make_combiner(name, num_tasks=2, **options)
    assert made.loss_part.name == "mgda"


def test_a_stored_policy_acts_as_long_as_its_squash_is_the_same() -> None:
    tanh, clip = (Config(agent="ppo", ppo=PpoConfig(squash=squash, epochs=3)) for squash in ("tanh", "clip"))
    differing = bound_to_policy(tanh).items() ^ bound_to_policy(clip).items()
    assert {key for key, _ in differing} == {"ppo.squash"}


def test_settings_at_their_limits_are_accepted() -> None:
    train, two = TrainConfig(warmup_steps=64), EnvConfig(envs_per_task=2)
    resolve(Config(train=train, env=two, sac=SacConfig(batch_per_task=128, noise_spread=2.0)))


def test_an_agent_checks_its_own_settings_and_no_other_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(config: Config, spec: Any, device: Any) -> None: ...

    class Careful:
        @staticmethod
        def check(config: Config, num_tasks: int) -> None:
            raise UserError(f"{num_tasks} tasks are too many")

    monkeypatch.setattr(AGENTS, "_plugins", {"plain": plain, "careful": Careful})
    config = Config(agent="plain", train=TrainConfig(warmup_steps=1), method="famo")
    assert resolve(config).agent == "plain"
    with pytest.raises(UserError, match="10 tasks are too many"):
        resolve(Config(agent="careful"))


def test_the_start_screen_names_settings_without_effect() -> None:
    moore: dict[str, Any] = {"architecture": "moore", "actor_layer_norm": True, "value_bins": 5}
    assert unread_facts(Config(network=NetworkConfig(**moore))) == {
        "not used": "network.value_bins, network.actor_layer_norm"
    }
    ppo = Config(agent="ppo", sac=SacConfig(gamma=0.9), train=TrainConfig(warmup_steps=5))
    assert unread_facts(ppo) == {"not used": "sac, train.warmup_steps"}
    assert why_unread(ppo, "sac.lr_hold_fraction") == "is not read by the agent ppo"
    assert unread_facts(Config(method="pcgrad", critic_method="cagrad")) == {}
    apart = Config(method="pcgrad", critic_method="cagrad", actor_method="mean")
    assert unread_facts(apart) == {"not used": "method"}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_of_the_library_has_no_setting_without_effect(name: str) -> None:
    for_both_agents = {"not used": "ppo"} if name == "debug" else {}
    assert unread_facts(build_config(load_preset(name), {"tasks": ["MT10"]})) == for_both_agents


def test_an_agent_of_ones_own_may_say_what_it_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(config: Config, spec: Any, device: Any) -> None: ...

    monkeypatch.setitem(AGENTS._plugins, "own", build)
    config = Config(agent="own", ppo=PpoConfig(epochs=3), sac=SacConfig(gamma=0.5))
    assert unread_facts(config) == {}
    build.unread = lambda config: {"ppo": "is not read by the agent own"}  # type: ignore[attr-defined]
    assert unread_facts(config) == {"not used": "ppo"}
    assert why_unread(config, "ppo.epochs") == "is not read by the agent own"
    assert why_unread(config, "sac.gamma") is None
