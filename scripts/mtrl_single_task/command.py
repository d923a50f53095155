r"""Trains SAC of Stable-Baselines3 on one task and writes a run directory for mtrl-report and load_runs.

It is the single-task baseline of Delta m, and shows whether mtrl's agent learns one task as fast:

    mtrl-train --preset single_task --tasks reach-v3 --seed 0 --run-dir runs/single/ours/reach-v3/seed0
    python scripts/train_single_task.py --preset single_task --task reach-v3 --seed 0 \
        --run-dir runs/single/sb3/reach-v3/seed0
    mtrl-report runs/single --out single

Both take the same preset. Settings that Stable-Baselines3 lacks are listed at the start and ignored.
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import stable_baselines3
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from mtrl.cli import command
from mtrl.compat.sb3 import SB3VecEnv
from mtrl.config.presets import build_config, config_to_dict, load_preset, save_config
from mtrl.config.schema import Config
from mtrl.device import cpu
from mtrl.device.cuda import resolve_device
from mtrl.envs import TaskVectorEnv
from mtrl.errors import UserError
from mtrl.runs import console
from mtrl.runs.directory import RunDirectory
from mtrl.runs.jsonl import JsonLines
from mtrl.runs.log import Evaluation, Log, RunInfo
from mtrl.training.build import build_envs, suite_of
from mtrl.training.evaluate import evaluate
from mtrl.training.resolve import resolve

METHOD = "sb3_sac"
_NO_METHODS: Mapping[str, Any] = {
    "critic_method": None, "actor_method": None,
    "method_options": {}, "critic_method_options": {}, "actor_method_options": {},
}  # fmt: skip
_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU}
# What Stable-Baselines3's SAC does; it has no other values of these settings.
_THEIRS: Mapping[str, Mapping[str, Any]] = {
    "sac": {
        "max_grad_norm": None, "actor_average_rate": None, "final_lr_fraction": 1.0, "q_reduce": "min",
        "actor_every": 1, "noise_hold": 1, "noise_spread": 1.0, "act_on_snapshot": False,
    },
    "network": {
        "architecture": "mlp", "actor_layer_norm": False, "critic_layer_norm": False, "critic_block": "mlp",
        "critic_loss": "squared", "observation_norm": "none", "weight_decay": 0.0,
        "initialisation": "he_uniform", "critic_dtype": "float32",
    },
    "train": {"warmup_updates": 0},
    "replay": {"reward_scaling": "none", "n_step": 1, "curriculum": 1.0},
}  # fmt: skip


def make_model(config: Config, envs: TaskVectorEnv) -> SAC:
    """Return SB3's SAC with the sizes and rates of `config`."""
    sac, network = config.sac, config.network
    return SAC(
        "MlpPolicy",
        SB3VecEnv(envs),
        learning_rate=sac.critic_lr,
        buffer_size=config.replay.capacity_per_task,
        learning_starts=config.train.warmup_steps * config.env.envs_per_task,
        batch_size=sac.batch_per_task,
        tau=sac.tau,
        gamma=sac.gamma,
        train_freq=(1, "step"),
        gradient_steps=config.train.updates_per_step,
        ent_coef=f"auto_{sac.initial_temperature}",
        target_entropy="auto" if sac.target_entropy is None else sac.target_entropy,
        policy_kwargs={
            "net_arch": {
                "pi": [network.actor_width] * network.actor_depth,
                "qf": [network.critic_width] * network.critic_depth,
            },
            "activation_fn": _ACTIVATIONS[network.activation],
            "optimizer_kwargs": {"eps": sac.adam_eps},
        },
        seed=config.seed,
        device=resolve_device(config.device),
    )


def not_carried_over(config: Config) -> list[str]:
    """Return the settings, as `section.name=value`, that Stable-Baselines3's agent does not have."""
    found = []
    for section, values in _THEIRS.items():
        ours = getattr(config, section)
        found += [f"{section}.{name}={getattr(ours, name)}" for name, value in values.items()
                  if getattr(ours, name) != value]  # fmt: skip
    if not config.sac.actor_lr == config.sac.critic_lr == config.sac.temperature_lr:
        found.append("sac.actor_lr and sac.temperature_lr (all take sac.critic_lr)")
    return found


def train_single_task(config: Config, run_dir: Path) -> Evaluation:
    """Train, evaluate as often and on the same goals as mtrl's runs, and return the final evaluation."""
    config = resolve(config)
    if config.agent != "sac":
        raise UserError(f"this trains SAC; found the agent {config.agent}. Try --preset single_task.")
    suite = suite_of(config)
    if len(suite.task_names) != 1:
        raise UserError(f"this trains one task; found {len(suite.task_names)}: give --task NAME.")
    for setting in not_carried_over(config):
        console.warning(f"not in Stable-Baselines3's SAC, left out: {setting}")
    for task, factor in suite.reward_factors.items():
        console.warning(f"not in Stable-Baselines3's SAC, left out: reward_factor={factor:g} of {task}")
    # After the restart of a worker Stable-Baselines3 would store a false transition.
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, max_restarts=0))
    with ExitStack() as stack:
        run = stack.enter_context(RunDirectory.create(run_dir))
        recorded = dataclasses.replace(config, agent=METHOD, method=METHOD, **_NO_METHODS)
        save_config(recorded, run.config_path)
        settings = config_to_dict(recorded)
        device = resolve_device(config.device)
        stack.enter_context(
            cpu.process_settings(config.train.num_threads, config.train.matmul_precision, device)
        )
        envs = stack.enter_context(closing(build_envs(config, num_workers=config.env.num_workers)))
        eval_envs = stack.enter_context(closing(build_envs(config, num_workers=None, evaluation=True)))
        versions = run.write_versions({**envs.versions, "stable_baselines3": stable_baselines3.__version__})
        log = Log(RunInfo(run.path, envs.task_names, settings, versions, None), JsonLines())
        stack.callback(log.close)
        model = make_model(config, envs)
        began = time.perf_counter()

        def measure(step: int, episodes: int, *, final: bool) -> Evaluation:
            result = evaluate(lambda obs: model.predict(obs, deterministic=True)[0], eval_envs, episodes)
            log.evaluation(log.stamp(step, envs.num_envs), result, final=final)
            print(
                f"{step:,} of {config.steps:,} vector steps, {time.perf_counter() - began:.0f} s: "
                f"success {result.mean_success:.3f}, return {result.mean_return:.1f}",
                flush=True,
            )
            return result

        class Evaluations(BaseCallback):  # type: ignore[misc]  # the package is not followed
            def _on_step(self) -> bool:
                if self.n_calls % config.eval.interval == 0 and self.n_calls < config.steps:
                    measure(self.n_calls, config.eval.episodes_per_task, final=False)
                return True

        model.learn(config.steps * envs.num_envs, callback=Evaluations())
        return measure(config.steps, config.eval.final_episodes_per_task, final=True)


@command
def main(arguments: list[str]) -> int:
    """Parse and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", required=True, help="a preset, or a file of mtrl-train --print-config")
    parser.add_argument("--task", help="the task; by default that of the preset")
    parser.add_argument("--steps", type=int, help="vector steps; by default the preset's")
    parser.add_argument("--seed", type=int, help="by default the preset's")
    parser.add_argument("--run-dir", type=Path, required=True, help="a new directory")
    flags = parser.parse_args(arguments)
    changes = {"tasks": flags.task and [flags.task], "steps": flags.steps, "seed": flags.seed}
    layer = {name: value for name, value in changes.items() if value is not None}
    train_single_task(build_config(load_preset(flags.preset), layer), flags.run_dir)
    return 0
