"""Time one update of an agent: by method, next to per-task backward passes and to Stable-Baselines3's SAC.

All implementations do the same work on transitions of the same shapes: twin critics, actor, temperatures and
target networks. They take turns, round by round, so that a machine whose speed drifts treats them alike; ms
is the median over the rounds. `share_of_floor` is the time of the update's matrix products at the speed of a
large product on this device over ms. `parameters` are those of an actor and two critics. With `--agent ppo`
it is a step on a minibatch, of an actor and one critic, without peers. With `--preset` it is our update
alone, with the settings of presets for ten tasks; ms is then the mean over the updates from one step of a
delayed actor to the next. There `--methods preset` stands for the preset's own methods.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from mtrl_benchmarks import report

if TYPE_CHECKING:
    import torch

    from mtrl_benchmarks._updates import Problem

ROW_KEYS = (
    "implementation", "method", "tasks", "width", "parameters", "batch_per_task", "device", "ms",
    "ratio_to_mean", "share_of_floor",
)  # fmt: skip
PACKAGES = ("stable-baselines3", "scipy", "cvxpy")

_PRESET_TASKS = 10
_SHORT = 2000.0  # ms below which a call follows an untimed one: peers before it have emptied the caches

Step = Callable[[], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's flags."""
    parser.add_argument(
        "--tasks", type=report.count, nargs="+", default=[10, 50], metavar="T", help="numbers of tasks"
    )
    parser.add_argument(
        "--widths", type=report.count, nargs="+", default=[400], help="units per hidden layer"
    )
    parser.add_argument("--depth", type=report.count, default=3, help="hidden layers")
    parser.add_argument(
        "--batch-per-task", type=report.count, default=128, help="transitions per task and update"
    )
    parser.add_argument(
        "--network",
        nargs="+",
        default=None,
        metavar="NAME",
        help="architectures (default: mlp, or the preset's); others than mlp: no peers",
    )
    parser.add_argument("--equal-size", action="store_true", help="also an mlp as large as each --network")
    parser.add_argument("--methods", nargs="+", default=["mean", "cagrad", "nash_mtl"], help="combiners")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=report.count, default=None, help="CPU threads (default: all cores)")
    parser.add_argument("--matmul-precision", choices=["auto", "highest", "high", "medium"], default="auto")
    parser.add_argument(
        "--rounds", type=report.count, default=15, help="timed rounds; each times every row once"
    )
    parser.add_argument("--agent", choices=["sac", "ppo"], default="sac", help="ppo: no peers")
    parser.add_argument(
        "--preset",
        nargs="+",
        default=[],
        metavar="NAME",
        help="networks, batch and agent of presets, no peers",
    )
    parser.add_argument("--no-peers", action="store_true", help="leave out the other implementations")
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="count the process's CPU time: for a busy machine"
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="also write a trace of our updates here")


def run(arguments: argparse.Namespace) -> list[report.Row]:
    """Measure every combination; returns rows with the keys ROW_KEYS."""
    from mtrl.device import cpu
    from mtrl.device.cuda import resolve_device

    device = resolve_device(arguments.device)
    rows: list[report.Row] = []
    with cpu.process_settings(arguments.threads, arguments.matmul_precision, device):
        if arguments.preset:
            return _measure_presets(arguments, device)
        for tasks in arguments.tasks:
            for width in arguments.widths:
                for network in arguments.network or ["mlp"]:
                    rows += _measure(arguments, tasks, width, network, device)
    return rows


def _measure(
    arguments: argparse.Namespace, tasks: int, width: int, network: str, device: torch.device
) -> list[report.Row]:
    from mtrl_benchmarks import _updates

    shape = (tasks, width, arguments.depth, arguments.batch_per_task, device)
    problem = _updates.Problem(*shape, network, arguments.agent)
    plain, prefix = network == "mlp" and arguments.agent == "sac", "mtrl"
    if arguments.agent != "sac":
        prefix += f", {arguments.agent}"
    ours = {prefix if network == "mlp" else f"{prefix}, {network}": problem}
    if arguments.equal_size:
        equal = problem.mlp_of_this_size()
        ours[f"{prefix}, as large as {network}"] = equal
    steps: dict[tuple[str, str], Step] = {}
    for method in arguments.methods:
        for name, own in ours.items():
            steps[name, method], _ = _updates.update_of(own.config(method), tasks, device)
        if not arguments.no_peers and plain:
            _add_peers(steps, problem, method)
    times = _rounds(steps, arguments, device)
    if arguments.profile is not None:
        profiled = [step for (implementation, _), step in steps.items() if implementation in ours]
        _updates.profile(profiled, arguments.profile)
    floor = _updates.floor_ms(problem) if plain else 0.0
    rows: list[report.Row] = []
    for (implementation, method), ms in times.items():
        mean, own = times.get((implementation, "mean")), ours.get(implementation, problem)
        rows.append(
            {
                "implementation": implementation,
                "method": method,
                "tasks": tasks,
                "width": own.width,
                "parameters": own.parameters,
                "batch_per_task": arguments.batch_per_task,
                "device": str(device),
                "ms": ms,
                "ratio_to_mean": ms / mean if mean else None,
                "share_of_floor": floor / ms if own == problem and plain else None,
            }
        )
    return rows


def _measure_presets(arguments: argparse.Namespace, device: torch.device) -> list[report.Row]:
    from mtrl_benchmarks import _updates

    steps: dict[tuple[str, str], Step] = {}
    updates: dict[tuple[str, str], int] = {}
    configs = {}
    for preset, network, method in product(arguments.preset, arguments.network or [None], arguments.methods):
        key = (f"mtrl, {preset}" + (f", {network}" if network else ""), method)
        configs[key] = _updates.of_preset(preset, method, network)
        steps[key], updates[key] = _updates.update_of(configs[key], _PRESET_TASKS, device)
    times = _rounds(steps, arguments, device)
    if arguments.profile is not None:
        _updates.profile(list(steps.values()), arguments.profile)
    rows: list[report.Row] = []
    for key, period in times.items():
        (implementation, method), sizes = key, configs[key].network
        mean = times.get((implementation, "mean"))
        rows.append(
            {
                "implementation": implementation,
                "method": method,
                "tasks": _PRESET_TASKS,
                "width": f"{sizes.actor_width}, {sizes.critic_width}",
                "parameters": None,
                "batch_per_task": _updates.rows_of_a_step(configs[key]),
                "device": str(device),
                "ms": period / updates[key],
                "ratio_to_mean": period / mean if mean else None,
                "share_of_floor": None,
            }
        )
    return rows


def _add_peers(steps: dict[tuple[str, str], Step], problem: Problem, method: str) -> None:
    from mtrl_benchmarks import _per_task_backward, _updates

    reference = _per_task_backward.make(problem, method)
    if reference is not None:
        steps["per-task backward", method] = reference
    if method == "mean":
        sb3 = _updates.stable_baselines3(problem)
        if sb3 is not None:
            steps["stable-baselines3", method] = sb3


def _rounds(
    steps: dict[tuple[str, str], Step], arguments: argparse.Namespace, device: torch.device
) -> dict[tuple[str, str], float]:
    """Median milliseconds of each step."""
    import torch

    from mtrl.device.cuda import WARM_UP_CALLS

    rounds, clock = arguments.rounds, time.process_time if arguments.cpu_seconds else time.perf_counter
    times: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    warm_up = 2 if device.type == "cpu" else WARM_UP_CALLS + 2  # on CUDA the call after them captures

    def timed(step: Step) -> float:
        began = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (clock() - began)

    for number in range(rounds + warm_up):
        for key, step in steps.items():
            ms = timed(step)
            if number >= warm_up:
                times[key].append(timed(step) if ms < _SHORT else ms)
    return {key: statistics.median(values) for key, values in times.items()}
