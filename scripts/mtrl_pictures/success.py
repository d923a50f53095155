"""The pictures of success over minutes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtrl.cli import command
from mtrl.cli.flags import parse_command
from mtrl.cli.named_files import check_writable, naming
from mtrl.config.values import settings
from mtrl.errors import UserError
from mtrl.report.drawing import Look, Room, legend, line_style, panels, style
from mtrl.report.load import Run, read_run

Curve = tuple[str, tuple[Sequence[float], Sequence[float]], Mapping[str, Any]]


@settings("--")
class _Flags:
    """Draw success over minutes: of each task if one run is given, else the mean of each run."""

    paths: tuple[str, ...] = ()
    """Run directories, and last the picture to write, for instance OUT.png."""


@command
def main(arguments: list[str]) -> int:
    """Read the runs and write the picture."""
    flags = parse_command(_Flags, arguments, positional="paths")
    *run_dirs, out = map(Path, flags.paths or ("",))
    if not run_dirs:
        raise UserError(f"expected RUN_DIR ... OUT.png; found {' '.join(flags.paths) or 'nothing'}.")
    check_writable(out)
    runs = [read_run(path) for path in run_dirs]
    with style(Look()):
        drawing, (axes,) = panels(Room(), 1, 8.0, 3.0)
        kinds = drawing.canvas.get_supported_filetypes()
        if out.suffix[1:].lower() not in kinds:
            raise UserError(f"expected a file ending in one of {', '.join(kinds)}; found '{out}'.")
        lines = _tasks(runs[0]) if len(runs) == 1 else _means(runs)
        for label, (minutes, success), look in lines:
            axes.plot(minutes, success, marker="o", markersize=3, label=label, **look)
        axes.set(xlabel="minutes", ylabel="success rate", ylim=(-0.03, 1.03), xlim=(0.0, None))
        legend(Room(), drawing, *axes.get_legend_handles_labels())
        with naming(out, "write"):
            drawing.savefig(out, dpi=110)
    return 0


def _tasks(run: Run) -> Iterator[Curve]:
    minutes = _minutes(run)
    for index, task in enumerate(run.tasks):
        success = [line["tasks"][task]["success"] for line in run.evaluations]
        yield task, (minutes, success), line_style(index)
    means = [line["mean_success"] for line in run.evaluations]
    yield "mean", (minutes, means), {"color": "black", "linewidth": 2.5}


def _means(runs: Sequence[Run]) -> Iterator[Curve]:
    """One colour for all seeds of an agent with a method."""
    kinds = list(dict.fromkeys(f"{run.config['agent']}, {run.method}" for run in runs))
    for run in runs:
        kind = f"{run.config['agent']}, {run.method}"
        means = [line["mean_success"] for line in run.evaluations]
        yield f"{kind}, seed {run.seed}", (_minutes(run), means), line_style(kinds.index(kind))


def _minutes(run: Run) -> list[float]:
    return [line["wall_s"] / 60.0 for line in run.evaluations]
