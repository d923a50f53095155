from __future__ import annotations

import dataclasses
import pickle
import re
from typing import Any

import pytest

from mtrl.config.schema import (
    Config,
    EnvConfig,
    EvalConfig,
    NetworkConfig,
    PpoConfig,
    ReplayConfig,
    SacConfig,
    TrainConfig,
)
from mtrl.errors import UserError

SECTIONS: dict[str, Any] = {
    "env": EnvConfig,
    "replay": ReplayConfig,
    "network": NetworkConfig,
    "sac": SacConfig,
    "ppo": PpoConfig,
    "train": TrainConfig,
    "eval": EvalConfig,
}
# The rules a user can rely on, written out here and not read from the module under test.
ZERO_ALLOWED = {
    "ppo.entropy",
    "ppo.final_entropy",
    "ppo.gae_lambda",
    "ppo.gamma",
    "env.worker_niceness",
    "env.max_restarts",
    "sac.lr_hold_fraction",
    "seed",
    "sac.gamma",
    "train.warmup_updates",
    "network.weight_decay",
}
ANY_NUMBER = {"sac.target_entropy", "network.value_low", "network.value_high"}


def build(path: str, value: Any) -> Config:
    section, _, name = path.rpartition(".")
    if not section:
        return Config(**{name: value})
    return Config(**{section: SECTIONS[section](**{name: value})})


def numeric_paths() -> list[str]:
    owners = {"": Config, **SECTIONS}
    return [
        f"{section}.{field.name}".lstrip(".")
        for section, owner in owners.items()
        for field in dataclasses.fields(owner)
        if re.search(r"Int|int,|Positive|float|Fraction", str(field.type))
    ]


@pytest.mark.parametrize("path", sorted(set(numeric_paths()) - ANY_NUMBER))
def test_every_number_refuses_negative_values_and_names_itself(path: str) -> None:
    with pytest.raises(UserError, match=rf"^{path} must be .*found -1"):
        build(path, -1)


@pytest.mark.parametrize("path", sorted(set(numeric_paths()) - ANY_NUMBER - ZERO_ALLOWED))
def test_numbers_that_count_or_scale_refuse_zero(path: str) -> None:
    with pytest.raises(UserError, match=path):
        build(path, 0)


@pytest.mark.parametrize("path", sorted(ZERO_ALLOWED))
def test_seed_discount_and_warmup_updates_may_be_zero(path: str) -> None:
    build(path, 0)


@pytest.mark.parametrize("path", ["sac.gamma", "sac.tau"])
def test_discount_and_target_step_end_at_one(path: str) -> None:
    build(path, 1.0)
    with pytest.raises(UserError, match=f"{path} must be at most 1; found 1.01"):
        build(path, 1.01)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("path", ["sac.actor_lr", "sac.max_grad_norm", "env.step_timeout"])
def test_numbers_are_finite(path: str, value: float) -> None:
    with pytest.raises(UserError, match=path):
        build(path, value)


@pytest.mark.parametrize("value", [-4.0, 0.0, 2.5])
def test_target_entropy_has_any_sign(value: float) -> None:
    assert build("sac.target_entropy", value).sac.target_entropy == value


@pytest.mark.parametrize("path", ["sac.max_grad_norm", "env.num_workers", "train.num_threads"])
def test_optional_numbers_may_be_none(path: str) -> None:
    build(path, None)


def test_configuration_cannot_be_changed_after_its_checks() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("owner", [Config, *SECTIONS.values()])
def test_every_field_is_documented_for_help(owner: Any) -> None:
    for name, field in owner.__pydantic_fields__.items():
        assert field.description or (owner is Config and name in SECTIONS), name


def test_help_of_what_takes_a_plug_in_names_both_ways_to_your_own() -> None:
    helps = {
        name: field.description or ""
        for owner in (Config, *SECTIONS.values())
        for name, field in owner.__pydantic_fields__.items()
    }
    both = {name for name, text in helps.items() if "package.module:Name or file.py:Name" in text}
    assert both == {"suite", "agent", "method", "architecture", "sinks"}  # docs/architecture.md's five


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("steps", 1000.5, r"steps must be an integer; found 1000\.5\."),
        ("steps", 1000.0, r"steps must be an integer; found 1000\.0\. Write 1000\."),
        ("steps", True, "steps must be an integer; found true"),
        ("steps", "10", r"steps must be an integer; found '10' \(text\)"),
        ("sac.gamma", False, r"sac\.gamma must be a finite number; found false"),
        ("network.actor_layer_norm", 1, r"network\.actor_layer_norm must be true or false; found 1"),
        ("device", "gpu", "unknown value for device 'gpu'. Did you mean 'cpu'"),
        ("method", 3, "method must be text; found 3"),
        ("env", 3, "env must be of type EnvConfig"),
        ("env", {"num_goal": 3}, "unknown argument 'env.num_goal'. Did you mean 'env.num_goals'?"),
        ("sac", {"gamma": 2.0}, "sac.gamma must be at most 1; found 2.0."),
        ("sac", {"noise_hold": 10_001}, "sac.noise_hold must be at most 10000; found 10001"),
        ("sac", {"actor_average_rate": 1e-17}, "sac.actor_average_rate must be at least 1e-09; found 1e-17"),
        ("tasks", [], "tasks must name at least one"),
        ("stepss", 3, "unknown argument 'stepss'. Did you mean 'steps'"),
        ("actor_method_options", {"c": 0.4}, "found no actor_method"),
    ],
)
def test_python_is_checked_as_yaml_is(path: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(path, value)


def test_configuration_travels_to_other_processes() -> None:
    config = Config(tasks=["reach-v3"], method="cagrad", method_options={"c": 0.4})  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(config)) == config


def test_each_network_may_have_its_own_method() -> None:
    config = Config(method="cagrad", method_options={"c": 0.4}, actor_method="mean")
    assert config.methods()["critic"] == ("cagrad", {"c": 0.4})
    assert config.methods()["actor"] == ("mean", {})


@pytest.mark.parametrize("tasks", ["MT10", ["MT10"], ("MT10",)])
def test_tasks_may_be_a_name_a_list_or_a_tuple(tasks: Any) -> None:
    assert Config(tasks=tasks).tasks == ("MT10",)
