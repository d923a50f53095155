"""Command line of scripts/group.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from mtrl.cli import command
from mtrl.cli.flags import parse_command
from mtrl.config.values import settings
from mtrl.errors import UserError
from mtrl.report.load import read_run
from mtrl.runs.checkpoint import load_checkpoint
from mtrl_grouping.groups import best_groups, task_order


@settings("--")
class _Flags:
    """Print flags, from a run with `affinity`: `--tasks` of the best groups, `--method.order` of all tasks.

    The order is for `cagrad_fast`, `sdmgrad_os` and `turns` on the tasks of the run in their order there.
    """

    run: str
    """Directory of a run with --method affinity."""
    groups: Annotated[int, Field(gt=0)] = 2
    """Largest number of groups."""
    smallest: Annotated[int, Field(gt=0)] = 1
    """Fewest tasks in a group."""
    largest: Annotated[int, Field(gt=0)] | None = None
    """Most tasks in a group; None: all."""
    network: Literal["critic", "actor"] = "critic"
    """Network whose affinities are taken."""


@command
def main(arguments: list[str]) -> int:
    """Print the groups and the order."""
    flags = parse_command(_Flags, arguments, positional="run")
    run = Path(flags.run)
    _, parts = load_checkpoint(run, parts=["agent"], allow_version_mismatch=True)
    gains, cosines = affinities(parts["agent"]["update"], flags.network)
    names = _task_names(run, len(gains))
    try:
        groups = best_groups(
            gains.numpy(), budget=flags.groups, smallest=flags.smallest, largest=flags.largest
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    for group in groups:
        print("--tasks " + " ".join(names[task] for task in group))
    print("--method.order " + " ".join(map(str, task_order(cosines.numpy()))))
    return 0


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
