"""Count what one update would launch on a GPU: nodes of its CUDA graph, by method. Needs no GPU.

The update runs on torch's meta device. Nothing is computed, but every operation is seen: its kernels, its
precision, and whether it synchronises with the host or copies from it. `nodes` counts the kernels of an
update of critics, actor and temperatures; `_nodes.py` says how many kernels an operation is. `ms` and
`minutes` are estimates from nodes and matrix products with the constants of that file; `minutes` is for the
preset's whole run on one GPU, without evaluation. Where updates do different things, `nodes` is the largest
number, and the estimates are means. A host read divides the graph; the time of the host is not in `ms`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mtrl_benchmarks import report

if TYPE_CHECKING:
    from mtrl_benchmarks._nodes import Counts

ROW_KEYS = (
    "method", "preset", "tasks", "nodes", "ratio_to_mean", "float64_share", "host_reads", "host_copies",
    "gflop", "ms", "minutes",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's flags."""
    parser.add_argument(
        "--tasks", type=report.count, nargs="+", default=[10, 50], metavar="T", help="numbers of tasks"
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

    ms = _nodes.estimated_ms(counts)
    return {
        "method": method,
        "preset": preset,
        "tasks": tasks,
        "nodes": counts.nodes,
        "ratio_to_mean": counts.nodes / of_mean,
        "float64_share": counts.float64_nodes / counts.nodes,
        "host_reads": len(counts.host_reads),
        "host_copies": len(counts.host_copies),
        "gflop": counts.flop / 1e9,
        "ms": ms,
        "minutes": ms * counts.updates / 60e3,
    }
