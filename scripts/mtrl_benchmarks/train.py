"""Time the whole training loop: vector steps per second, times of its parts, hours of the preset's run.

For each method: the environments alone, the update alone, then the loop that overlaps them, from the same
parts. `overlap_efficiency` is the longer of the two over the loop's time per vector step: 1 if acting,
transfers and bookkeeping cost nothing and the shorter one hides behind the longer one entirely. PPO learns
while the environments wait: its `update_ms` is measured in the loop and its overlap is below 1 by design.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mtrl_benchmarks import report

if TYPE_CHECKING:
    import torch

    from mtrl.config.schema import Config
    from mtrl.training.stepper import Stepper

ROW_KEYS = (
    "method", "preset", "tasks", "device", "vector_steps_per_s", "act_ms", "env_ms", "update_ms", "loop_ms",
    "overlap_efficiency", "protocol_hours",
)  # fmt: skip

_WARMUP = 50  # vector steps before the clock starts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's flags."""
    parser.add_argument("--preset", default="laptop", help="configuration to train with")
    parser.add_argument("--methods", nargs="+", default=["mean", "cagrad"], help="combiners")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--steps", type=report.count, default=500, help="timed vector steps of each measurement"
    )
    parser.add_argument("--envs-per-task", type=report.count, default=None, help="instead of the preset's")
    parser.add_argument("--num-workers", type=report.count, default=None, help="instead of the preset's")
    parser.add_argument(
        "--threads", type=report.count, default=None, help="the learner's, instead of the preset's"
    )


def run(arguments: argparse.Namespace) -> list[report.Row]:
    """Measure each method; returns rows with the keys ROW_KEYS."""
    from mtrl.config.presets import build_config, load_preset
    from mtrl.training.resolve import resolve

    chosen = {"envs_per_task": arguments.envs_per_task, "num_workers": arguments.num_workers}
    layer = {
        "device": arguments.device,
        "env": {key: value for key, value in chosen.items() if value is not None},
        "train": {} if arguments.threads is None else {"num_threads": arguments.threads},
    }
    rows: list[report.Row] = []
    for method in arguments.methods:
        # The preset's own options of the method come in here.
        config = resolve(build_config(load_preset(arguments.preset), layer, {"method": method}))
        rows.append({"method": method, "preset": arguments.preset, **_measure(config, arguments.steps)})
    return rows


def _measure(config: Config, steps: int) -> report.Row:
    from mtrl.device import cpu
    from mtrl.device.cuda import resolve_device

    device = resolve_device(config.device)
    with cpu.process_settings(config.train.num_threads, config.train.matmul_precision, device):
        return _measure_here(config, steps, device)


def _measure_here(config: Config, steps: int, device: torch.device) -> report.Row:
    from mtrl.agents.sac.agent import SACAgent
    from mtrl.training.build import build_envs, training_workers
    from mtrl.training.stepper import RunState, Stepper

    # Enough data for an update; PPO's first rollout may give statistics alone, so it is not timed.
    warmup = max(100, -(-config.sac.batch_per_task // config.env.envs_per_task))
    if config.agent == "ppo":
        warmup = config.ppo.rollout_steps
        steps = -(-(steps + _WARMUP) // warmup) * warmup - _WARMUP  # whole rollouts, each with its updates
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, warmup_steps=warmup))
    envs = build_envs(config, num_workers=training_workers(config, device))
    try:
        state = RunState(config, envs, device)
        stepper = Stepper(config, state)
        stepper.begin()
        for step in range(warmup):
            _vector_step(stepper, step)
        before = dict(stepper.seconds)
        loop_ms = _loop_ms(stepper, warmup, steps, device)
        in_loop = {name: stepper.seconds[name] - before[name] for name in ("act", "update")}
        act_ms, update_ms = (1e3 * spent / (steps + _WARMUP) for spent in in_loop.values())
        if isinstance(state.agent, SACAgent):  # learns while the environments step, so it is timed alone
            update = state.agent.update_from_replay
            update_ms = config.train.updates_per_step * _milliseconds(update, steps, device)
        env_ms = _env_ms(stepper, steps)
    finally:
        envs.close()
    return {
        "tasks": envs.num_tasks,
        "device": str(device),
        "vector_steps_per_s": 1e3 / loop_ms,
        "act_ms": act_ms,
        "env_ms": env_ms,
        "update_ms": update_ms,
        "loop_ms": loop_ms,
        "overlap_efficiency": max(env_ms, update_ms) / loop_ms,
        "protocol_hours": config.steps * loop_ms / 3.6e6,
    }


def _vector_step(stepper: Stepper, step: int) -> None:
    """Make a vector step, with the learning of an agent that learns between steps."""
    stepper.vector_step(step)
    stepper.catch_up(step + 1, lambda: True)


def _loop_ms(stepper: Stepper, start: int, steps: int, device: torch.device) -> float:
    for step in range(start, start + _WARMUP):
        _vector_step(stepper, step)
    _synchronise(device)
    began = time.perf_counter()
    for step in range(start + _WARMUP, start + _WARMUP + steps):
        _vector_step(stepper, step)
    _synchronise(device)
    return 1e3 * (time.perf_counter() - began) / steps


def _milliseconds(function: Callable[[], None], steps: int, device: torch.device) -> float:
    _synchronise(device)
    began = time.perf_counter()
    for _ in range(steps):
        function()
    _synchronise(device)
    return 1e3 * (time.perf_counter() - began) / steps


def _env_ms(stepper: Stepper, steps: int) -> float:
    """Time of a vector step of the environments alone, with uniformly random actions."""
    import numpy as np

    envs = stepper.state.envs
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (steps, *(envs.action_space.shape or ())))
    began = time.perf_counter()
    for action in actions.astype(np.float32):
        envs.step_async(action)
        envs.step_wait()
    return 1e3 * (time.perf_counter() - began) / steps


def _synchronise(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
