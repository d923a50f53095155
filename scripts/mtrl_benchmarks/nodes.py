"""Count what one update would launch on a GPU: nodes of its CUDA graph, by method. Needs no GPU.

The update runs on torch's meta device. Nothing is computed, but every operation is seen: its kernels, its
precision, and whether it synchronises with the host or copies from it. `nodes` counts the kernels of an
update of critics, actor and temperatures; `_nodes.py` says how many kernels an operation is. `ms` and
`minutes` are estimates from nodes and matrix products with the constants of that file; `minutes` is for the
preset's whole run on one GPU, without evaluation. A method that is eager reads from the host: its update is
no graph, and has no count.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mtrl_benchmarks import report

if TYPE_CHECKING:
    from mtrl_benchmarks._nodes import Counts

ROW_KEYS = (
    "method", "preset", "tasks", "nodes", "ratio_to_mean", "float64_share", "host_reads", "host_copies",
    "eager", "gflop", "ms", "minutes",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's flags."""
    parser.add_argument(
        "--tasks", type=int, nargs="+", default=[10, 50], metavar="T", help="numbers of tasks"
    )
    parser.add_argument(
        "--presets", nargs="+", default=["mt10"], metavar="NAME", help="settings of the update"
    )
    parser.add_argument("--methods", nargs="+", default=None, help="combiners (default: all)")


def run(arguments: argparse.Namespace) -> list[report.Row]:
    """Count every combination; returns rows with the keys ROW_KEYS."""
    from mtrl.combiners import COMBINERS
    from mtrl_benchmarks import _nodes

    methods = sorted(COMBINERS) if arguments.methods is None else arguments.methods
    rows: list[report.Row] = []
    for preset in arguments.presets:
        for tasks in arguments.tasks:
            mean = _nodes.count(preset, "mean", tasks)
            for method in methods:
                counts = _nodes.count(preset, method, tasks)
                rows.append(_row(counts, method, preset, tasks, mean.nodes))
    return rows


def _row(counts: Counts, method: str, preset: str, tasks: int, of_mean: int) -> report.Row:
    from mtrl_benchmarks import _nodes

    graph = counts.capturable
    ms = _nodes.estimated_ms(counts)
    return {
        "method": method,
        "preset": preset,
        "tasks": tasks,
        "nodes": counts.nodes if graph else None,
        "ratio_to_mean": counts.nodes / of_mean if graph else None,
        "float64_share": counts.float64_nodes / counts.nodes if graph else None,
        "host_reads": len(counts.host_reads),
        "host_copies": len(counts.host_copies),
        "eager": not graph,
        "gflop": counts.flop / 1e9 if graph else None,
        "ms": ms if graph else None,
        "minutes": ms * counts.updates / 60e3 if graph else None,
    }
