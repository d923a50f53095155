"""All solves that are one kernel on a CUDA device, and how far a kernel's solution may be from the host's.

Without a GPU a kernel's source runs on NumPy (see `plain_triton`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mtrl.combiners.pcgrad import PCGrad
from mtrl.combiners.solvers import (
    backends,
    bargaining,
    equal,
    hull,
    kernels,
    projections,
    surgery,
    worst_case,
)
from mtrl.combiners.solvers.path import tolerance_of
from tests.combiners.solvers.problems import DTYPES, KINDS, problem
from tests.helpers import plain_triton

DOUBLE = torch.finfo(torch.float64).eps
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Runner = Callable[..., None]
_MOST_PROGRAMS = 10  # about as many run of a kernel with a program for each task


def mean(tasks: int) -> Tensor:
    return torch.full((tasks,), 1.0 / tasks, dtype=torch.float64)


def reference(tasks: int) -> Tensor:
    weights = torch.arange(1, tasks + 1, dtype=torch.float64)
    return weights / weights.sum()


# An objective of `found` returns its value, and the size of the terms that it is the sum of: their
# rounding is its own. The host's solution, `known`, fixes the units.


def worst_gain(gram: Tensor, found: Any, known: Any) -> tuple[float, float]:
    """Least gain of a direction, over the mean norm under the dual."""
    weights, dual = found[0], known[1]
    lengths = gram.diagonal().clamp(min=0.0).sqrt()
    if not (lengths > 0.0).any():
        return 0.0, 0.0
    unit = (dual @ lengths).clamp(min=1e-300)
    products = gram @ weights
    gains = torch.where(lengths > 0.0, products, torch.inf)
    terms = torch.where(dual > 0.0, gram.abs() @ weights.abs(), 0.0).max()
    # The direction's length, to which the solver scales it, is as well known as its square.
    squares = weights.abs() @ gram.abs() @ weights.abs() / (weights @ products).clamp(min=1e-300)
    return float(gains.min() / unit), float((terms + squares * products.abs().max()) / unit)


def gain_in_cone(gram: Tensor, found: Any, known: Any) -> tuple[float, float]:
    dual = known[0][:-1] / known[0][:-1].sum().clamp(min=1e-300)
    mean = found[0][-1] / torch.where(found[1] > 0.0, found[1], 1.0) / len(gram)
    return worst_gain(gram, (found[0][:-1] + mean,), (None, dual))


def square(gram: Tensor, found: Any, known: Any) -> tuple[float, float]:
    """|g_w|^2 over the mean square of the gradients under w.

    The rounding of a Gramian can make it negative, and a solver then finds some point of many below 0.
    """
    value = (found @ gram @ found).clamp(min=0.0)
    return float(value / (known @ gram.diagonal()).clamp(min=1e-300)), 1.0


def rows_of_projections(gram: Tensor, found: Any, known: Any) -> tuple[float, float]:
    """Mean over the programs of |g_v|^2 of unit gradients; rounding can make it negative, see `square`."""
    lengths = gram.diagonal().clamp(min=0.0).sqrt()
    scales = torch.outer(lengths, lengths)
    unit = gram / torch.where(scales > 0.0, scales, 1.0)
    unit.fill_diagonal_(1.0)
    values = torch.einsum("ij,jk,ik->i", found, unit, found)
    return float(values.clamp(min=0.0).mean()), 1.0


def orders(gram: Tensor) -> Tensor:
    """A random order of the other tasks for each task [T, T-1]."""
    return PCGrad(num_tasks=len(gram)).draw_orders().to(gram.device)


def emtl(gram: Tensor, eps: float) -> Tensor:
    """EMTL's weights for losses of either sign."""
    exact = gram.double()
    lengths = exact.diagonal().clamp(min=0.0).sqrt()
    cosines = exact / torch.outer(lengths, lengths).clamp(min=1e-300)
    losses = torch.linspace(-1.0, 2.0, len(gram), dtype=torch.float64, device=gram.device)
    return backends.solve("emtl", cosines, (lengths, losses), (0.5, tolerance_of(eps)))


def vaccine(gram: Tensor) -> Tensor:
    """GradVac's weights and targets, one below the other [T + 1, T], from targets of all angles."""
    targets = torch.linspace(-1.0, 1.0, gram.numel(), dtype=torch.float64, device=gram.device).view_as(gram)
    weights, moved = surgery.turned(gram, orders(gram), targets, 0.3)
    return torch.cat((weights.unsqueeze(0), moved))


# Name, the call with the Gramian and its eps, and the objective of what it returns.
SOLVES: dict[
    str, tuple[Callable[[Tensor, float], Any], Callable[[Tensor, Any, Any], tuple[float, float]] | None]
] = {
    "hull": (lambda gram, eps: hull.shortest_in_hull(gram, eps=eps), square),
    "capped": (lambda gram, eps: hull.shortest_capped(gram, 0.37, eps=eps), square),
    "around": (
        lambda gram, eps: worst_case.best_around(gram, mean(len(gram)).to(gram.device), 0.3, eps=eps),
        worst_gain,
    ),
    "around a reference": (
        lambda gram, eps: worst_case.best_around(
            gram,
            reference(len(gram)).to(gram.device),
            0.9,
            eps=eps,
            factor=torch.full((1,), 1.7, dtype=torch.float64, device=gram.device),
        ),
        worst_gain,
    ),
    "cone": (lambda gram, eps: worst_case.best_in_cone(gram, 0.3, eps=eps), gain_in_cone),
    "nash": (lambda gram, eps: bargaining.bargaining_weights(gram, ridge=16.0 * eps), None),
    "fair": (
        lambda gram, eps: bargaining.bargaining_weights(gram, ridge=16.0 * eps, alpha=2.3),
        None,
    ),
    "projections": (
        lambda gram, eps: projections.cone_weights(gram, ridge=16.0 * eps),
        rows_of_projections,
    ),
    "projection": (
        lambda gram, eps: projections.cone_projection(
            gram, reference(len(gram)).to(gram.device), ridge=16.0 * eps
        ),
        square,
    ),
    "sum 1": (lambda gram, eps: equal.equal_projections(gram, projected=False), None),
    "equal": (lambda gram, eps: equal.equal_projections(gram, projected=True), None),
    "emtl": (emtl, None),
    "surgery": (lambda gram, eps: surgery.projected(gram, orders(gram)), square),
    "vaccine": (lambda gram, eps: vaccine(gram), None),
}


@contextmanager
def by_kernel(run: Runner = plain_triton.run) -> Iterator[None]:
    """Let problems on a CPU go to the kernels, which `run` runs.

    Of a kernel with a program for each of many tasks, some programs run; the rows of the others are the
    host's.
    """
    on_host = backends._on_host

    def solve(name: str, gram: Tensor, vectors: Any = (), numbers: Any = ()) -> Tensor:
        kernel, count, inputs, constants = kernels.planned(name, gram.contiguous(), vectors, numbers)
        programs = range(0, count, max(1, count // _MOST_PROGRAMS))
        if len(programs) < count:
            result = on_host(name, gram, vectors, numbers)
            result[..., programs, :] = torch.nan
        else:
            result = torch.empty(backends.PROBLEMS[name].shape(len(gram)), dtype=torch.float64)
        run(kernel, programs, *inputs, result, len(gram), **constants)
        return result

    with mock.patch.object(backends, "_on_host", solve):
        yield


def by_triton(kernel: Any, programs: range, *given: Any, **constants: Any) -> None:
    """Run a kernel as Triton does: in its interpreter or, for tensors of a GPU, there."""
    kernel[(len(programs),)](*given, **constants)


def solved_by_kernel(name: str, gram: Tensor, eps: float) -> Any:
    """The solution of a kernel, on the CPU."""
    with by_kernel() if DEVICE == "cpu" else nullcontext():
        found = SOLVES[name][0](gram.to(DEVICE), eps)
    return found.cpu() if isinstance(found, Tensor) else tuple(part.cpu() for part in found)


def failures(
    names: Iterable[str],
    kind: tuple[str, float],
    sizes: Iterable[int],
    dtypes: Iterable[torch.dtype] = tuple(DTYPES),
) -> list[str]:
    """The problems of a kind that a kernel solves otherwise than the host, in words."""
    found = []
    for name, tasks, dtype in itertools.product(names, sizes, dtypes):
        gram = problem(*kind, tasks, 3, dtype)
        apart = differences(name, gram, bargain=kind in KINDS and kind[0] != "deficient")
        found += [
            f"{name}, {tasks} tasks, {dtype}: apart by {distance:.2e}, {what}; at most {bound:.2e} expected"
            for what, distance, bound in apart
            if not distance <= bound
        ]
    return found


def differences(name: str, gram: Tensor, bargain: bool) -> Iterator[tuple[str, float, float]]:
    """What differs between the solutions of kernel and host for a Gramian [T, T], by how much, and the bound.

    Weights of a bargain are compared only where there is a `bargain`: elsewhere a ridge bounds them.
    """
    call, objective = SOLVES[name]
    eps = torch.finfo(gram.dtype).eps
    exact = (gram.double() + gram.double().T) / 2.0
    lengths = exact.diagonal().clamp(min=0.0).sqrt()
    torch.manual_seed(0)  # of the orders of gradients
    expected = call(gram, eps)
    torch.manual_seed(0)
    found = solved_by_kernel(name, gram, eps)
    if objective is not None:
        value, _ = objective(exact, found, expected)
        wanted, terms = objective(exact, expected, expected)
        # The Gramian's entries are rounded by eps / 2, and do not determine its objective any further. Nor do
        # terms determine it that nearly cancel: long gradients beside short ones, a cone around a mean of
        # which only rounding is left.
        bound = max(1e-9, eps / 2.0) * max(1.0, abs(wanted)) + 8.0 * DOUBLE * terms
        yield "objective", abs(value - wanted), bound
    elif name == "vaccine":  # a closed form
        apart, size = (found[0] - expected[0]) * lengths, (expected[0] * lengths).abs().max()
        yield "weights", float(apart.abs().max()), 1e-6 * float(size)
        yield "targets", float((found[1:] - expected[1:]).abs().max()), 1e-6
    else:  # the direction, relative to the terms that it is the sum of, or to the gradients where it vanishes
        if name == "sum 1" and torch.linalg.matrix_rank(exact, hermitian=True) == 1:
            # Any weights make the same direction; its length is rounding's choice.
            own, other = (weights @ exact @ weights for weights in (found, expected))
            found = found * torch.where(own > 0.0, other / own, 1.0).clamp(min=0.0).sqrt()
        apart, terms = found - expected, float(expected.abs() @ lengths)
        bound = 1e-6 * terms + 1e-10 * float(lengths.mean())
        yield "direction", float((apart @ exact @ apart).clamp(min=0.0).sqrt()), bound
        if bargain and name in ("nash", "fair"):
            yield "weights", float(apart.abs().max()), 1e-2 * float(expected.abs().max())
