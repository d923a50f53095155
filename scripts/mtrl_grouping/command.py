"""Command line of scripts/group.py."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mtrl.errors import UserError
from mtrl.report.load import read_run
from mtrl.runs.checkpoint import load_checkpoint
from mtrl_grouping.groups import best_groups, task_order


def main(arguments: Sequence[str] | None = None) -> int:
    """Print flags, from a run with `affinity`: `--tasks` of the best groups, `--method.order` of all tasks.

    The order is for `cagrad_fast`, `sdmgrad_os` and `turns` on the tasks of the run in their order there.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("run", type=Path, help="directory of a run with --method affinity")
    parser.add_argument("--groups", type=int, default=2, help="largest number of groups (default: 2)")
    parser.add_argument("--smallest", type=int, default=1, help="fewest tasks in a group (default: 1)")
    parser.add_argument("--largest", type=int, default=None, help="most tasks in a group (default: all)")
    parser.add_argument("--network", choices=("critic", "actor"), default="critic")
    try:
        _report(parser.parse_args(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(chosen: argparse.Namespace) -> None:
    _, parts = load_checkpoint(chosen.run, parts=["agent"], allow_version_mismatch=True)
    gains, cosines = affinities(parts["agent"]["update"], chosen.network)
    names = _task_names(chosen.run, len(gains))
    try:
        groups = best_groups(
            gains.numpy(), budget=chosen.groups, smallest=chosen.smallest, largest=chosen.largest
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    for group in groups:
        print("--tasks " + " ".join(names[task] for task in group))
    print("--method.order " + " ".join(map(str, task_order(cosines.numpy()))))


def affinities(state: Mapping[str, Any], network: str) -> tuple[Tensor, Tensor]:
    """Return gains and cosines [T, T] of `affinity` from an agent's saved state.

    Raises:
        UserError: the run did not collect any.
    """
    found: dict[str, Tensor] = {}
    for name in ("gains", "cosines", "share"):
        keys = [key for key in state if key.startswith(f"{network}.") and key.endswith(f"combiner.{name}")]
        if len(keys) == 1:
            found[name] = state[keys[0]]
    if len(found) < 3 or float(found["share"]) == 0.0:
        raise UserError(
            f"the run's {network} has collected no affinities: train it with --method affinity, "
            "--method.base being the method that combines."
        )
    return found["gains"] / found["share"], found["cosines"] / found["share"]


def _task_names(run: Path, tasks: int) -> Sequence[str]:
    names = read_run(run).tasks
    if len(names) != tasks:  # a benchmark's name stands for its tasks until the first evaluation
        raise UserError(
            f"the run has affinities of {tasks} tasks and names {len(names)}: {', '.join(names)}. Its first "
            "evaluation names all: go on with --resume until then."
        )
    return names
