"""Step Meta-World with mtrl, Gymnasium, Stable-Baselines3, EnvPool and MuJoCo alone: env steps per second.

All of them run in one process tree, in turns of a few dozen vector steps, with the same recorded actions:
uniformly random ones, and those of upstream's scripted policies (contacts cost). Rates are medians over the
turns; episodes start together before each kind of action, so no turn contains a reset. `physics` steps the
same models in as many processes as mtrl has workers: five `mj_step` and one `mj_forward` per env step, the
work divided without loss. `startup_s` runs from nothing to the first observations, with mtrl's goals cached;
`memory_mb` is the growth of the proportional set size of all processes. Peers that are not installed or have
no such layout are left out with a note. EnvPool is another port: other MuJoCo, other goals.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtrl.device.resources import available_cores
from mtrl.errors import UserError, unknown_name
from mtrl_benchmarks import report

if TYPE_CHECKING:
    from mtrl_benchmarks._actions import Actions
    from mtrl_benchmarks._contenders import Contender

ROW_KEYS = (
    "tasks", "envs_per_task", "actions", "backend", "workers", "env_steps_per_s", "share_of_physics",
    "ratio_to_gym_async", "startup_s", "memory_mb",
)  # fmt: skip
PACKAGES = ("metaworld", "mujoco", "gymnasium", "numpy", "stable-baselines3", "envpool")

_KINDS = ("random", "scripted")
_PEERS = ("gym_sync", "gym_async", "sb3_subproc", "envpool")
_LONGEST = 480  # vector steps without a reset, of an episode of 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's flags."""
    parser.add_argument("--tasks", nargs="+", default=["MT10", "MT50"], help="benchmarks or single tasks")
    parser.add_argument("--envs-per-task", nargs="+", type=report.count, default=[1, 8])
    parser.add_argument("--actions", nargs="+", choices=_KINDS, default=list(_KINDS))
    parser.add_argument("--peers", nargs="*", default=list(_PEERS), help=f"of {', '.join(_PEERS)}")
    parser.add_argument(
        "--workers", nargs="+", type=report.count, help="mtrl's worker processes; several: a sweep"
    )
    parser.add_argument("--steps", type=report.count, default=40, help="vector steps of a turn")
    parser.add_argument("--turns", type=report.count, default=7, help="turns of each backend")


def run(arguments: argparse.Namespace) -> list[report.Row]:
    """Measure every layout; returns rows with the keys ROW_KEYS."""
    _check(arguments)
    from mtrl.envs import resolve_tasks
    from mtrl_benchmarks._actions import Actions

    rows: list[report.Row] = []
    for tasks in arguments.tasks:
        names = resolve_tasks(tasks)
        recorded = Actions(names, arguments.steps * arguments.turns)
        for copies in arguments.envs_per_task:
            rows += _layout(tasks, names, copies, recorded, arguments)
    return rows


def _check(arguments: argparse.Namespace) -> None:
    if arguments.steps * arguments.turns > _LONGEST:
        raise UserError(
            f"--steps times --turns must be at most {_LONGEST}, within one episode; "
            f"found {arguments.steps * arguments.turns}."
        )
    for peer in arguments.peers:
        if peer not in _PEERS:
            raise UserError(unknown_name("peer", peer, _PEERS))


def _layout(
    label: str, names: Sequence[str], copies: int, recorded: Actions, arguments: argparse.Namespace
) -> list[report.Row]:
    """Measure all backends on T tasks x E copies."""
    from mtrl_benchmarks._contenders import start

    workers = arguments.workers or [available_cores()]
    wanted = [(kind, count) for count in workers for kind in ("physics", "mtrl")]
    wanted += [(peer, workers[0]) for peer in arguments.peers]
    contenders: list[Contender] = []
    rows: list[report.Row] = []
    try:
        for kind, count in wanted:
            contender = start(kind, names, copies, count)
            if contender is not None:
                contenders.append(contender)
        for kind in arguments.actions:
            report.note(f"{label}, {copies} envs per task, {kind} actions")
            rates = _race(contenders, recorded.of(kind, copies), arguments.steps)
            shared: report.Row = {"tasks": label, "envs_per_task": copies, "actions": kind}
            rows += [{**shared, **row} for row in _rows(contenders, rates)]
    finally:
        for contender in contenders:
            contender.vector.close()
    return rows


def _race(contenders: Sequence[Contender], actions: list[object], steps: int) -> list[float]:
    """Return each contender's median env steps per second over turns of `steps` vector steps."""
    rates: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender.vector.reset()
    for first in range(0, len(actions), steps):
        turn = actions[first : first + steps]
        for contender, own in zip(contenders, rates, strict=True):
            own.append(len(turn) * contender.num_envs / contender.vector.seconds(turn))
    return [statistics.median(own) for own in rates]


def _rows(contenders: Sequence[Contender], rates: Sequence[float]) -> list[report.Row]:
    by_name = {(c.name, c.workers): rate for c, rate in zip(contenders, rates, strict=True)}
    first = contenders[0].workers
    asynchronous = by_name.get(("gym_async", first))
    return [
        {
            "backend": contender.name,
            "workers": contender.workers,
            "env_steps_per_s": rate,
            "share_of_physics": rate / by_name.get(("physics", contender.workers), by_name["physics", first]),
            "ratio_to_gym_async": None if asynchronous is None else rate / asynchronous,
            "startup_s": contender.startup_s,
            "memory_mb": contender.memory_mb,
        }
        for contender, rate in zip(contenders, rates, strict=True)
    ]
