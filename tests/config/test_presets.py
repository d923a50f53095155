from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import mtrl
from mtrl.config.presets import (
    build_config,
    config_to_dict,
    load_config,
    load_preset,
    preset_names,
    presets_folder,
    save_config,
)
from mtrl.config.schema import Config, EnvConfig, NetworkConfig, SacConfig
from mtrl.errors import UserError

SHIPPED = [
    "debug",
    "evening",
    "laptop",
    "laptop_v1",
    "mt10",
    "mt10_fast",
    "mt50",
    "mtrl_compat",
    "sac_laptop",
    "single_task",
]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_shipped_presets_are_found() -> None:
    assert set(SHIPPED) <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_preset_builds(name: str) -> None:
    config = build_config(load_preset(name), {"tasks": ["MT10"]})
    found = dict(leaves(config_to_dict(config)))
    for path, value in leaves(load_preset(name)):
        assert path == "tasks" or found[path] == value


@pytest.mark.parametrize("name", preset_names())
def test_preset_never_restates_what_holds_without_it(name: str) -> None:
    values = yaml.safe_load((presets_folder() / f"{name}.yaml").read_text()) or {}
    parent = load_preset(values["extends"]) if "extends" in values else {}
    before = dict(leaves(config_to_dict(build_config(parent))))
    fields = dict(leaves(config_to_dict(Config()))).keys() - {"tasks"}  # options may come in one block
    for path, value in leaves(values):
        if path in fields:
            assert value != before[path], f"{path}: {value} holds anyway"


@pytest.mark.parametrize("name", preset_names())
def test_preset_cites_where_it_comes_from(name: str) -> None:
    assert (presets_folder() / f"{name}.yaml").read_text().startswith("# ")


def test_mt10_is_the_meta_world_plus_protocol() -> None:
    config = build_config(load_preset("mt10"))
    assert config.tasks == ("MT10",)
    assert (config.env.num_goals, config.env.max_episode_steps) == (None, 500)
    assert (config.network.actor_width, config.network.critic_width, config.network.task_identity) == (
        400,
        400,
        "one_hot",
    )
    assert (config.sac.gamma, config.sac.tau, config.sac.batch_per_task, config.sac.max_grad_norm) == (
        0.99,
        0.005,
        128,
        1.0,
    )
    assert (config.sac.actor_lr, config.sac.critic_lr, config.sac.temperature_lr) == (3e-4, 3e-4, 3e-4)
    assert (config.train.warmup_steps, config.train.updates_per_step, config.steps) == (4000, 1, 2_000_000)
    assert config.replay.capacity_per_task == 100_000
    assert config.eval.final_episodes_per_task == 50


def test_mt10_fast_has_the_updates_data_and_networks_of_mt10() -> None:
    usual, fast = (build_config(load_preset(name)) for name in ("mt10", "mt10_fast"))

    def amounts(config: Config) -> dict[str, float]:
        copies, train, steps = config.env.envs_per_task, config.train, config.steps
        return {
            "transitions per task": steps * copies,
            "of them random": train.warmup_steps * copies,
            "updates": (steps - train.warmup_steps) * train.updates_per_step,
            "evaluations": steps / config.eval.interval,
            "checkpoints": steps / train.checkpoint_interval,
            "log lines": steps / train.log_interval,
        }

    assert amounts(fast) == amounts(usual)
    for section in ("network", "sac", "replay", "tasks", "suite_options", "method_defaults"):
        assert getattr(fast, section) == getattr(usual, section)
    assert fast.steps * 4 == usual.steps


def test_mtrl_compat_is_the_protocol_of_the_2021_line() -> None:
    config = build_config(load_preset("mtrl_compat"), {"tasks": ["MT10"]})
    assert (config.suite_options["reward_version"], config.env.num_goals) == ("v1", 1)
    assert config.env.max_episode_steps == 150
    assert (config.network.task_identity, config.replay.reward_scaling) == ("none", "ema")
    assert (config.sac.max_grad_norm, config.sac.adam_eps, config.sac.temperature) == (None, 1e-8, "shared")
    assert (config.train.warmup_steps, config.train.warmup_updates) == (1500, 1500)
    assert (config.eval.interval, config.eval.episodes_per_task) == (10_000, 1)
    assert config.sac.batch_per_task * 10 == 1280


def test_layers_are_merged_key_by_key_with_the_last_strongest() -> None:
    config = build_config(
        {"sac": {"gamma": 0.9, "tau": 0.1}, "seed": 1},
        {"sac": {"gamma": 0.95}},
        {"tasks": ("reach-v3", "push-v3")},
    )
    assert (config.sac.gamma, config.sac.tau, config.sac.actor_lr) == (0.95, 0.1, SacConfig().actor_lr)
    assert (config.seed, config.tasks) == (1, ("reach-v3", "push-v3"))


def test_no_layer_is_the_default() -> None:
    assert build_config() == build_config({}) == Config()


def test_options_stay_with_the_method_they_were_given_for() -> None:
    of_cagrad = {"method": "cagrad", "method_options": {"c": 0.4}}
    assert build_config(of_cagrad, {"method": "cagrad"}).method_options == {"c": 0.4}
    assert build_config(of_cagrad, {"method": "pcgrad"}).method_options == {}
    of_base = {"method": "fs_mtl", "method_options": {"base": "cagrad", "base_options": {"c": 0.4}}}
    other = build_config(of_base, {"method_options": {"base": "mgda"}})
    assert other.method_options == {"base": "mgda"}
    network = {"network": {"architecture": "my_file:Net", "options": {"width": 3}}}
    assert build_config(network, {"network": {"architecture": "mlp"}}).network.options == {}


def test_a_method_for_both_networks_is_not_overruled_by_a_weaker_layer(tmp_path: Path) -> None:
    preset = load_preset("toppo_mt10")
    assert [name for name, _ in build_config(preset).methods().values()] == ["fairgrad", "pcgrad"]
    for method in ("cagrad", "mean"):  # mean is also what the preset leaves `method` at
        config = build_config(preset, {"method": method})
        assert [name for name, _ in config.methods().values()] == [method, method]
        assert not config.critic_method_options
    config = build_config(preset, {"method": "cagrad", "actor_method": "nash_mtl"})
    assert [name for name, _ in config.methods().values()] == ["cagrad", "nash_mtl"]
    child = load_preset(write(tmp_path, "extends: toppo_mt10\nmethod: cagrad\n"))
    assert [name for name, _ in build_config(child).methods().values()] == ["cagrad", "cagrad"]
    former = build_config(preset, {"seed": 3})
    assert build_config(config_to_dict(former)) == former  # one layer that names all of them


def test_extends_merges_the_chain_of_presets(tmp_path: Path) -> None:
    write(tmp_path, "extends: mt50\nseed: 5\nsac: {gamma: 0.9, tau: 0.5}\n", "base.yaml")
    child = write(tmp_path, "extends: base.yaml\nsac: {gamma: 0.8}\nmethod_defaults: {cagrad: {c: 0.3}}\n")
    assert load_preset(child) == {
        "tasks": ("MT50",),
        "seed": 5,
        "sac": {"gamma": 0.8, "tau": 0.5},
        "method_defaults": {"cagrad": {"c": 0.3}},
    }


def test_a_tilde_in_the_path_of_a_preset_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    write(tmp_path / "user", "seed: 5\n", "base.yaml")
    child = write(tmp_path, "extends: ~/base.yaml\nsteps: 7\n")
    assert load_preset("~/base.yaml") == {"seed": 5}
    assert load_preset(child) == {"seed": 5, "steps": 7}
    with pytest.raises(UserError, match=f"cannot read {tmp_path}/user/none.yaml: No such file"):
        load_preset("~/none.yaml")


def test_a_circle_of_presets_in_two_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", "extends: ../b.yaml\n", "a.yaml")
    outer = write(tmp_path, "extends: below/a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match=r"circle: \S*/b\.yaml -> \S*/below/a\.yaml -> \S*/b\.yaml\."):
        load_preset(outer)


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "extends: mine.yaml\n", "other.yaml")
    with pytest.raises(UserError, match=r"circle: .*mine\.yaml -> .*other\.yaml -> .*mine\.yaml"):
        load_preset(write(tmp_path, "extends: other.yaml\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sac: {gama: 0.9}", r"unknown key 'sac\.gama'\. Did you mean 'sac\.gamma'\?"),
        ("gamma: 0.9", r"unknown key 'gamma'\. Did you mean 'sac\.gamma'\?"),
        (
            "env: {batch_per_task: 3}",
            r"unknown key 'env\.batch_per_task'\. Did you mean 'sac\.batch_per_task'\?",
        ),
        ("seeed: 1", r"unknown key 'seeed'\. Did you mean 'seed'\?.*Valid: .*steps"),
        ("1: 2", "unknown key '1'"),
        ("sac: 3", "sac must be a mapping 'key: value'; found 3"),
        ("seed: true", "seed must be an integer; found true"),
        ("seed: 1.5", "seed must be an integer; found 1.5"),
        ("steps: 2e6", r"steps must be an integer; found 2000000\.0\. Write 2000000\."),
        ("steps: 2.0e+6", r"steps must be an integer; found 2000000\.0\. Write 2000000\."),
        ("steps: null", "steps must be an integer; found null"),
        ("sac: {gamma: high}", r"sac\.gamma must be a finite number; found 'high' \(text\)"),
        ("sac: {gamma: false}", r"sac\.gamma must be a finite number; found false"),
        ("sac: {target_entropy: .nan}", r"sac\.target_entropy must be a finite number or null; found nan"),
        ("sac: {max_grad_norm: None}", r"finite number or null; found 'None' \(text\)\. Write null\."),
        ("network: {actor_layer_norm: 1}", r"network\.actor_layer_norm must be true or false; found 1"),
        ("sac: {temperature: sharde}", r"value for sac\.temperature 'sharde'\. Did you mean 'shared'\?"),
        ("sac: {temperature: 3}", r"sac\.temperature must be one of per_task, shared; found 3"),
        ("tasks: [1]", r"tasks must be a list of names; found 1"),
        ("sac: {gamma: 2}", r"sac\.gamma must be at most 1; found 2"),
        ("method_defaults: [cagrad]", r"method_defaults must be a mapping"),
        ("method_options: 3", r"method_options must be a mapping"),
        ("extends: mt01", r"unknown preset 'mt01'\. Did you mean '.*'\? Valid: brc"),
        ("extends: 3", "extends must be text or null; found 3"),
        ("seed: 1\nseed: 2", "not valid YAML: 'seed' is given twice.*line 2"),
        ("seed: [", "not valid YAML"),
        ("- seed", "must hold a mapping"),
    ],
)
def test_mistakes_in_a_preset_name_the_file_the_key_and_what_was_found(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=rf"(?s)^{path}.*{message}"):
        load_preset(path)


def test_unknown_preset_and_missing_file_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown preset 'mt5'\. Did you mean 'mt50'\?"):
        load_preset("mt5")
    with pytest.raises(UserError, match=r"cannot read absent\.yaml: No such file"):
        load_preset("absent.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1E-8", 1e-8), ("1", 1.0), ("2.5e-3", 2.5e-3), ("+.5", 0.5), (".5e3", 500.0)],
)
def test_numbers_are_read_as_people_write_them(tmp_path: Path, text: str, value: float) -> None:
    loaded = load_preset(write(tmp_path, f"sac: {{actor_lr: {text}}}"))["sac"]["actor_lr"]
    assert type(loaded) is float
    assert loaded == value


def test_empty_file_is_an_empty_preset(tmp_path: Path) -> None:
    assert load_preset(write(tmp_path, "# nothing yet\n")) == {}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"tasks": []}, "tasks must name at least one; found none"),
        ({"sac": {"gamma": 2}}, r"sac\.gamma must be at most 1; found 2"),
        ({"sac": {"noise_spread": 0.5}}, r"sac\.noise_spread must be at least 1; found 0\.5"),
        ({"sac": {"batch_per_task": -3}}, r"sac\.batch_per_task must be positive; found -3"),
        ({"env": None}, "env must be a mapping"),
    ],
)
def test_values_are_checked_however_they_arrive(layer: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config(layer)


@settings(max_examples=30)
@given(
    lr=st.floats(min_value=1e-300, max_value=1e300),
    entropy=st.floats(allow_nan=False, allow_infinity=False),
    clip=st.none() | st.floats(min_value=1e-300, max_value=1e300),
    c=st.floats(min_value=0, max_value=1),
    workers=st.none() | st.integers(min_value=1, max_value=10**12),
    norm=st.booleans(),
)
def test_saved_configuration_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    lr: float,
    entropy: float,
    clip: float | None,
    c: float,
    workers: int | None,
    norm: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    config = Config(
        tasks=("reach-v3", "push-v3"),
        method="cagrad",
        method_options={"c": c},
        env=EnvConfig(num_workers=workers),
        network=NetworkConfig(actor_layer_norm=norm, heads="per_task"),
        sac=SacConfig(actor_lr=lr, target_entropy=entropy, max_grad_norm=clip),
    )
    save_config(config, path)
    assert load_config(path) == config


def test_saved_file_holds_every_value(tmp_path: Path) -> None:
    save_config(Config(), tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved == config_to_dict(Config())
    assert saved["sac"]["batch_per_task"] == 128
    assert saved["tasks"] == ["MT10"]


def test_failed_save_keeps_the_former_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    save_config(Config(seed=1), path)

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_config(Config(seed=2), path)
    assert load_config(path).seed == 1
    assert os.listdir(tmp_path) == ["config.yaml"]


def test_broken_saved_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: x\n", "config.yaml")
    with pytest.raises(UserError, match=rf"^{path}: seed must be an integer; found 'x'"):
        load_config(path)


def test_build_config_does_not_change_its_layers() -> None:
    layer: dict[str, Any] = {"method_defaults": {"cagrad": {"c": 0.5}}, "sac": {"gamma": 0.9}}
    build_config(layer, {"sac": {"gamma": 0.8}, "method": "cagrad"})
    assert layer == {"method_defaults": {"cagrad": {"c": 0.5}}, "sac": {"gamma": 0.9}}


def test_a_stored_configuration_of_the_repository_is_read() -> None:
    assert load_config(presets_folder().parent / "results/laptop-cagrad/config.yaml").method == "cagrad"


def test_a_preset_with_settings_of_python_is_one_call() -> None:
    flags = {
        "eval.interval": 60,
        "sac": {"gamma": 0.9},
        "sac.tau": 0.1,
        "method": "cagrad",
        "method_options.c": 0.4,
    }
    found = Config.from_preset("debug", **flags)
    expected = {"eval": {"interval": 60}, "sac": {"gamma": 0.9, "tau": 0.1}}
    expected |= {"method": "cagrad", "method_options": {"c": 0.4}}
    assert found == build_config(load_preset("debug"), expected)
    assert Config.from_preset("debug", {"seed": 3}).seed == 3
    assert Config(sac={"gamma": 0.9}).sac.gamma == 0.9  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"unknown key 'eval.intervall'. Did you mean 'eval.interval'"):
        Config.from_preset("debug", **{"eval.intervall": 60})


def test_settings_in_a_mapping_and_as_keywords_hold_together_and_stay_as_they_are() -> None:
    env = {"num_workers": 1}
    own: dict[str, Any] = {"env": env, "sac": {"gamma": 0.9, "tau": 0.1}, "env.num_goals": 5}
    found = Config.from_preset("debug", own, sac={"gamma": 0.8}, **{"env.step_timeout": 7.0})
    assert (found.sac.gamma, found.sac.tau) == (0.8, 0.1)
    assert (found.env.num_workers, found.env.num_goals, found.env.step_timeout) == (1, 5, 7.0)
    assert env == {"num_workers": 1}
    names = {"method_defaults": {"my.file:Own": {"c": 0.4}}}  # the dots of a name begin no section
    assert Config.from_preset("debug", names).method_defaults["my.file:Own"] == {"c": 0.4}


@pytest.mark.parametrize("keys", [("method", "method.c"), ("method.c", "method")])
def test_a_value_is_no_section(keys: tuple[str, str]) -> None:
    values = {"method": "cagrad", "method.c": 0.4}
    with pytest.raises(UserError, match="Options of a method are in method_options"):
        Config.from_preset("laptop", {key: values[key] for key in keys})


def test_the_top_level_lists_its_public_names_and_has_them() -> None:
    assert {"make_combiner", "resume_training", "evaluate_run", "Config", "train"} < set(dir(mtrl))
    assert set(dir(mtrl)) == {*mtrl.__all__, "__version__"}
    assert all(getattr(mtrl, name) is not None for name in mtrl.__all__)
