"""A setting either changes what an agent does, is refused, or is named as unread: found out by experiment."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch

from mtrl.agents import AGENTS
from mtrl.config.presets import build_config
from mtrl.config.schema import Config
from mtrl.errors import UserError
from mtrl.networks.make import check_networks
from tests.helpers.agents import TASKS, WIDTH, spec
from tests.helpers.plain_ppo import Story

COPIES = 2
SMALL: dict[str, Any] = {
    "env": {"envs_per_task": COPIES},
    "network": {"actor_width": WIDTH, "actor_depth": 2, "critic_width": WIDTH, "critic_depth": 2},
    "sac": {"batch_per_task": 5},
    "train": {"warmup_steps": 6},
    "replay": {"capacity_per_task": 64},
    "ppo": {"rollout_steps": 7, "epochs": 2, "minibatches": 2},
}
EMBEDDED = {"task_identity": "embedding", "critic_loss": "categorical"}
BASES: dict[str, dict[str, Any]] = {
    "sac": {},
    "sac, all on": {
        "network": EMBEDDED,
        "replay": {"reward_scaling": "return"},
        "sac": {"final_lr_fraction": 0.5},
    },
    "sac, held": {"sac": {"final_lr_fraction": 0.5, "lr_hold_fraction": 1.0}},
    "sac, residual": {"network": {"critic_block": "residual"}},
    "sac, moore": {"network": {"architecture": "moore"}},
    "sac, simba_v2": {"network": {"architecture": "simba_v2", **EMBEDDED}},
    "ppo": {"agent": "ppo"},
    "ppo, brc": {"agent": "ppo", "network": {"architecture": "brc", "task_identity": "embedding"}},
    "ppo, all on": {"agent": "ppo", "ppo": {"value_norm": "pop_art", "target_kl": 1e-6}},
}
OPTIMISERS: dict[str, dict[str, Any]] = {
    "both": {"method": "adatask"},
    "one": {"method": "adatask", "actor_method": "mean"},
    "wrapped": {"method": "dropgrad", "method_options": {"base": "adatask", "base_options": {}}},
    "heads": {"method": "adatask", "network": {"heads": "per_task"}},
    "moore": {"critic_method": "m_config", "actor_method": "adatask", "network": {"architecture": "moore"}},
    "ppo": {"agent": "ppo", "method": "m_config"},
    "pop_art": {"agent": "ppo", "method": "adatask", "ppo": {"value_norm": "pop_art"}},
}
# A value of each setting that is neither its default nor SMALL's; a file is checked beside its identity.
OTHERS: dict[str, dict[str, Any]] = {
    "network": {
        "actor_width": 12, "actor_depth": 3, "critic_width": 12, "critic_depth": 3, "activation": "tanh",
        "actor_layer_norm": True, "critic_layer_norm": True, "heads": "per_task", "critic_block": "residual",
        "critic_loss": "huber", "critic_dtype": "bfloat16", "value_bins": 7, "value_low": -3.0,
        "value_high": 4.0, "observation_norm": "warmup", "task_identity": "none", "identity_width": 5,
        "initialisation": "orthogonal", "weight_decay": 0.1,
    },
    "replay": {
        "capacity_per_task": 11, "reward_scaling": "ema", "return_bound": 0.01, "return_quantile": 0.9,
        "n_step": 3, "curriculum": 0.5,
    },
    "sac": {
        "gamma": 0.5, "tau": 0.5, "actor_lr": 1e-3, "critic_lr": 1e-3, "temperature_lr": 1e-3,
        "final_lr_fraction": 0.1, "lr_hold_fraction": 0.5, "actor_average_rate": 0.1, "adam_eps": 1e-2,
        "batch_per_task": 4, "q_reduce": "mean", "actor_every": 2, "act_on_snapshot": True, "noise_hold": 4,
        "noise_spread": 2.0, "max_grad_norm": 1e-3, "temperature": "shared", "initial_temperature": 0.1,
        "target_entropy": 1.0, "critic_loss_bound": 1.0, "q_bound": 1.0,
    },
    "ppo": {
        "rollout_steps": 6, "epochs": 3, "minibatches": 7, "gamma": 0.5, "gae_lambda": 0.5, "clip": 1e-3,
        "advantages": "none", "value_norm": "pop_art", "value_coefficient": 2.0, "entropy": 0.1,
        "final_entropy": 0.2, "actor_lr": 1e-3, "critic_lr": 1e-3, "final_lr_fraction": 0.1,
        "target_kl": 1e-2, "adam_eps": 1e-2, "max_grad_norm": 1e-3, "squash": "clip", "kl_bound": 2.0,
    },
    "train": {"warmup_steps": 9, "warmup_updates": 2, "updates_per_step": 2},
}  # fmt: skip


def config_of(base: str, section: str = "", field: str = "") -> Config:
    settings: dict[str, Any] = {name: dict(values) for name, values in SMALL.items()}
    for name, values in (BASES | OPTIMISERS)[base].items():
        settings[name] = values if isinstance(values, str) else settings.get(name, {}) | values
    if section:
        settings[section][field] = OTHERS[section][field]
    return build_config(settings)


@cache
def deeds(config_name: tuple[str, str, str]) -> list[Any]:
    """What an agent does in 16 vector steps: actions, policy, parameters, bounds of what is logged."""
    config = config_of(*config_name)
    agent = AGENTS[config.agent](config, spec(TASKS, COPIES), torch.device("cpu"))
    story, found = Story(TASKS, COPIES), []
    for step in range(16):
        found.append(story.follow(agent).action.tobytes())
        while config.agent == "ppo" and agent.behind():
            agent.learn(step / 16)
        agent.learn(step / 16)
    found.append(agent.policy(1)(story._obs()[:TASKS]).tobytes())
    found += [value.numpy().tobytes() for value in agent.update.state_dict().values()]
    return [*found, agent.bounds()]


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_a_setting_changes_what_the_agent_does_or_is_refused_or_unread(base: str) -> None:
    wrong = []
    for section, fields in OTHERS.items():
        for field in fields:
            config = config_of(base, section, field)
            if config == config_of(base):
                continue
            try:
                check_networks(config.network, spec().task_names)
                AGENTS[config.agent].check(config, TASKS)
            except UserError:
                continue
            unread = AGENTS[config.agent].unread(config)
            ignored = deeds((base, section, field)) == deeds((base, "", ""))
            if ignored != bool({section, f"{section}.{field}"} & unread.keys()):
                wrong.append((section, field, "has no effect" if ignored else "is called unread"))
    assert not wrong


@pytest.mark.dear
@pytest.mark.parametrize("base", OPTIMISERS)
def test_clipping_and_adams_epsilon_are_unread_where_methods_step_by_themselves(base: str) -> None:
    section = config_of(base).agent
    for field in ("max_grad_norm", "adam_eps"):
        ignored = deeds((base, section, field)) == deeds((base, "", ""))
        unread = AGENTS[section].unread(config_of(base))
        assert ignored == (f"{section}.{field}" in unread), field


def test_a_share_that_step_sizes_never_reach_is_unread() -> None:
    assert deeds(("sac, held", "sac", "final_lr_fraction")) == deeds(("sac, held", "", ""))
    held, usual = (AGENTS["sac"].unread(config_of(base)) for base in ("sac, held", "sac, all on"))
    assert "sac.final_lr_fraction" in held
    assert "sac.final_lr_fraction" not in usual


def test_each_setting_is_tried() -> None:
    missing = {"network": {"architecture", "options", "actor_options", "critic_options", "identity_file"}}
    for section, tried in OTHERS.items():
        fields = {field.name for field in dataclasses.fields(getattr(Config(), section))}
        if section != "train":  # the loop reads the rest of it
            assert fields - missing.get(section, set()) == tried.keys(), section
