"""Who solves a method's problem, behind one interface.

mtrl; torchjd; published, the solver of the method's first publication; published_rl, the one of its authors'
code for reinforcement learning, which mtrl offers as `solver="paper"`.
"""

import contextlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtrl.combiners import COMBINERS, GramCombiner, LossCombiner, make_combiner
from mtrl.combiners.solvers.gramian import gramian
from mtrl_benchmarks import _published
from mtrl_benchmarks.report import note

C, LAM, ALPHA = 0.9, 0.6, 2.0  # of CAGrad, SDMGrad and FairGrad in all implementations
_CONSTANT = {"cagrad": "c", "conicgrad": "c", "capped_mgda": "cap", "sdmgrad": "lam", "fairgrad": "alpha"}
Weights = Callable[[Tensor], Tensor]


class Implementation(NamedTuple):
    """One way to combine: `weights` [T, T] -> [T], None where there are none; `combine` [T, P] -> [P]."""

    name: str
    weights: Weights | None
    combine: Callable[[Tensor], Tensor]
    kept: object = None  # lives as long as the implementation


def available(names: tuple[str, ...]) -> list[str]:
    """Return the implementations among `names` that are installed; a line says how to install the others."""
    needs = {
        "torchjd": (("torchjd",), "pip install 'torchjd[full]'"),
        "published": (("scipy", "cvxpy", "ecos"), "pip install scipy cvxpy ecos"),
    }
    found = []
    for name in names:
        packages, command = needs.get(name, ((), ""))
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            note(f"{name}: skipped, {', '.join(missing)} not installed: {command}")
        else:
            found.append(name)
    return found


def implementation(
    name: str, method: str, tasks: int, constant: float | None = None
) -> Implementation | None:
    """Return a fresh instance; None where `name` does not offer `method`.

    `constant` is CAGrad's or ConicGrad's c, capped MGDA's cap, SDMGrad's lam or FairGrad's alpha; None: C,
    LAM and ALPHA of this module, and the defaults of ConicGrad and capped MGDA.
    """
    more: dict[str, Any] = {} if constant is None else {_CONSTANT[method]: constant}
    if name == "mtrl":
        return _ours(name, method, tasks, **more)
    if name == "published_rl":
        return _ours(name, method, tasks, solver="paper", **more) if _has_paper_solver(method) else None
    if constant is not None:
        return None
    if name == "torchjd":
        return _torchjd(method, tasks)
    solvers: dict[tuple[str, str], Callable[[], Weights]] = {
        ("published", "cagrad"): lambda: lambda gram: _published.cagrad_by_slsqp(gram, C),
        ("published", "nash_mtl"): lambda: _published.NashByLinearisation(tasks),
    }
    if (name, method) not in solvers:
        return None
    return _weighted(name, solvers[name, method]())


def _has_paper_solver(method: str) -> bool:
    return "solver" in inspect.signature(COMBINERS[method]).parameters


def _ours(name: str, method: str, tasks: int, **more: Any) -> Implementation:
    options: dict[str, dict[str, Any]] = {
        "cagrad": {"c": C, "rescale": 0}, "sdmgrad": {"lam": LAM}, "fairgrad": {"alpha": ALPHA},
    }  # fmt: skip
    combiner = make_combiner(method, num_tasks=tasks, **(options.get(method, {}) | more))
    inside_an_update = contextlib.ExitStack()
    inside_an_update.enter_context(combiner.unchecked())
    losses = torch.linspace(0.5, 1.5, tasks)
    weights: Weights | None = None
    if isinstance(combiner, GramCombiner):
        weights = combiner.weights
    elif isinstance(combiner, LossCombiner):
        by_losses = combiner.weights
        weights = lambda gram: by_losses(losses)  # noqa: E731
    return Implementation(
        name, weights, lambda jacobian: combiner.combine(jacobian, losses), inside_an_update
    )


def _torchjd(method: str, tasks: int) -> Implementation | None:
    library = importlib.import_module("torchjd.aggregation")
    if method == "sdmgrad":
        return _weighted("torchjd", library.SDMGradWeighting(lambda_=LAM))
    arguments: dict[str, tuple[str, dict[str, Any]]] = {
        "aligned_mtl": ("AlignedMTL", {}),
        "cagrad": ("CAGrad", {"c": C, "norm_eps": 0.0}),
        "fairgrad": ("FairGrad", {"alpha": ALPHA}),
        "graddrop": ("GradDrop", {}),
        "imtl_g": ("IMTLG", {}),
        "mean": ("Mean", {}),
        "mgda": ("MGDA", {}),
        "nash_mtl": ("NashMTL", {"n_tasks": tasks}),
        "pcgrad": ("PCGrad", {}),
        "upgrad": ("UPGrad", {}),
    }
    if method not in arguments:
        return None
    cls, options = arguments[method]
    aggregator = getattr(library, cls)(**options)
    weights: Weights | None = None
    if isinstance(aggregator, library.GramianWeightedAggregator):
        weights = aggregator.gramian_weighting
    elif isinstance(aggregator, library.WeightedAggregator):
        # It takes a Jacobian; a square root of the Gramian is the smallest one, cheap beside its solver.
        weights = lambda gram: aggregator.weighting(_square_root(gram))  # noqa: E731
    return Implementation("torchjd", weights, aggregator)


def _weighted(name: str, weights: Weights) -> Implementation:
    def combine(jacobian: Tensor) -> Tensor:
        return weights(gramian(jacobian)).to(jacobian.dtype) @ jacobian

    return Implementation(name, weights, combine)


def _square_root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram.double())
    root: Tensor = vectors * values.clamp(min=0.0).sqrt()
    return root.to(gram.dtype)


def timed_methods() -> list[str]:
    """Return the methods that are ours to time: all but the bridge to another library."""
    return [name for name in COMBINERS if name != "torchjd"]
