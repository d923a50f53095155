"""Time and accuracy of the gradient combiners, next to TorchJD and to the published solvers.

ms_weights is the solve for a given Gramian, ms_combine the whole way from a Jacobian to the direction:
medians over repetitions, in which the implementations of a method take turns. The order of the tasks moves
on from repetition to repetition, so that solvers with a warm start do not find their own solution. Times are
on the CPU, in float32; mtrl without the input checks, as inside an update. The objective is that of the
method: see the lines printed first. `published` is the solver of a method's publication, `published_rl` that
of its authors' code for reinforcement learning.

--accuracy instead bounds how far weights are from optimal on random Gramians of several families, for several
constants of each method, in double and single precision: the worst of --cases each. Cases without the
solution that a method asks for (a fixed point, a cone with a direction that improves all tasks) do not count;
that happens where parameters are Pareto-stationary.
"""

import argparse
import os
import sys

from mtrl.errors import UserError, unknown_name
from mtrl_benchmarks import report

ROW_KEYS = ("implementation", "method", "tasks", "ms_weights", "ms_combine", "objective")
ACCURACY_KEYS = (
    "implementation", "method", "constant", "dtype", "family", "tasks", "cases", "measure", "median", "worst",
)  # fmt: skip
PACKAGES = ("torchjd", "scipy", "cvxpy", "clarabel", "ecos", "quadprog", "qpsolvers")

_IMPLEMENTATIONS = ("mtrl", "torchjd", "published", "published_rl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's flags."""
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default: all that apply")
    parser.add_argument(
        "--tasks",
        type=report.count,
        nargs="+",
        metavar="T",
        help="default: 2 10 50 200; with --accuracy 2 10 50",
    )
    parser.add_argument(
        "--parameters", type=report.count, default=350_000, metavar="P", help="columns (default: 350000)"
    )
    parser.add_argument(
        "--implementations", nargs="+", choices=_IMPLEMENTATIONS, metavar="NAME",
        help=f"of {', '.join(_IMPLEMENTATIONS)}; default: all; with --accuracy mtrl",
    )  # fmt: skip
    parser.add_argument(
        "--repetitions", type=report.count, default=21, metavar="N", help="per median (default: 21)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="per solver, for its repetitions; skipped if one call takes 6 times that (default: 10)",
    )
    parser.add_argument("--family", default="conflicting", help="of Jacobians to time (default: conflicting)")
    parser.add_argument(
        "--threads", type=report.count, default=1, metavar="N", help="CPU threads (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random Jacobians")
    parser.add_argument("--accuracy", action="store_true", help="worst cases instead of times")
    parser.add_argument(
        "--cases", type=report.count, default=20, metavar="N", help="per family (default: 20)"
    )


def run(arguments: argparse.Namespace) -> list[report.Row]:
    """Measure; returns rows with ROW_KEYS, or ACCURACY_KEYS for --accuracy."""
    tasks = tuple(arguments.tasks or ((2, 10, 50) if arguments.accuracy else (2, 10, 50, 200)))
    _limit_threads(arguments.threads)
    from mtrl_benchmarks import _accuracy, _implementations, _timing
    from mtrl_benchmarks._families import FAMILIES

    if arguments.family not in FAMILIES:
        raise UserError(unknown_name("--family", arguments.family, FAMILIES))
    known = _accuracy.METHODS if arguments.accuracy else _implementations.timed_methods()
    for method in arguments.methods or ():
        if method not in known:
            raise UserError(unknown_name("method", method, known))
    methods = tuple(arguments.methods or known)
    default = ("mtrl",) if arguments.accuracy else _IMPLEMENTATIONS
    names = _implementations.available(tuple(arguments.implementations or default))
    if arguments.accuracy:
        return _accuracy.worst_cases(methods, names, tasks, arguments.cases, arguments.seed)
    return _timing.times(methods, names, tasks, arguments)


def _limit_threads(threads: int) -> None:
    # The linear algebra behind numpy and scipy reads its limit when it is loaded.
    if "numpy" not in sys.modules:
        os.environ.update({f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")})
    import torch

    torch.set_num_threads(threads)
