"""Methods beside TorchJD's on three data sets of scikit-learn, step by step along one training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtrl.combiners import make_combiner
from mtrl.gradients.task_jacobian import set_gradient, task_jacobian

datasets: Any = pytest.importorskip("sklearn.datasets")
aggregation: Any = pytest.importorskip("torchjd.aggregation")
linalg: Any = pytest.importorskip("torchjd.linalg")
STEPS = 8


class Data(NamedTuple):
    """Inputs [N, I] and what each of T tasks is to find in them [N, T], standardised."""

    inputs: Tensor
    targets: Tensor


def linnerud() -> Data:
    """Weight, waist and pulse of 20 people from their exercises."""
    found = datasets.load_linnerud()
    return Data(_standardised(found.data), _standardised(found.target))


def diabetes() -> Data:
    """Progression of the disease, body mass and blood pressure of 442 patients from the other figures."""
    found = datasets.load_diabetes()
    targets = np.column_stack((found.target, found.data[:, 2], found.data[:, 3]))
    return Data(_standardised(np.delete(found.data, (2, 3), axis=1)), _standardised(targets))


def digits() -> Data:
    """Ten tasks: whether a picture of 8 x 8 shows the digit."""
    found = datasets.load_digits()
    return Data(_standardised(found.data[:400]), _standardised(np.eye(10)[found.target[:400]]))


def _standardised(values: NDArray[Any]) -> Tensor:
    table = torch.from_numpy(np.asarray(values, dtype=np.float64))
    deviation = table.std(dim=0)
    return (table - table.mean(dim=0)) / torch.where(deviation > 0.0, deviation, 1.0)


def training(data: Data, method: str, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """The Jacobians and directions of some steps of a network of one hidden layer."""
    torch.manual_seed(0)
    tasks = data.targets.shape[1]
    model = nn.Sequential(nn.Linear(data.inputs.shape[1], 8), nn.Tanh(), nn.Linear(8, tasks)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    combiner = make_combiner(method, num_tasks=tasks, **options)
    steps = []
    for _ in range(STEPS):
        losses = (model(data.inputs) - data.targets).square().mean(dim=0)
        jacobian = task_jacobian(losses, model[0])  # the shared layer; the last one is a head per task
        steps.append((jacobian, combiner.combine(jacobian)))
        set_gradient(model[0], steps[-1][1])
        optimizer.step()
    return steps


def projector() -> Any:
    return linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)


# Our method and options, theirs, what theirs is multiplied by for T tasks, largest relative difference.
PAIRS: dict[str, tuple[dict[str, Any], Callable[[], Any], Callable[[int], float], float]] = {
    "mean": ({}, lambda: aggregation.Mean(), lambda tasks: 1.0, 1e-12),
    "upgrad": ({}, lambda: aggregation.UPGrad(projector=projector()), lambda tasks: 1.0, 1e-6),
    "dual_proj": ({}, lambda: aggregation.DualProj(projector=projector()), lambda tasks: 1.0, 1e-6),
    "cagrad": (
        {"c": 0.4, "rescale": 0},
        lambda: aggregation.CAGrad(c=0.4, norm_eps=0.0),
        lambda tasks: 1.0,
        1e-3,  # theirs is a conic solver's
    ),
    "mgda": ({}, lambda: aggregation.MGDA(epsilon=1e-12, max_iters=1000), lambda tasks: 1.0, 5e-2),
    "imtl_g": ({}, lambda: aggregation.IMTLG(), lambda tasks: 1.0, 1e-6),
    "config": ({}, lambda: aggregation.ConFIG(), lambda tasks: 1.0 / tasks, 1e-6),
    "aligned_mtl": ({}, lambda: aggregation.AlignedMTL(), lambda tasks: 1.0, 1e-6),
}


@pytest.mark.parametrize("data", [linnerud, diabetes, digits])
@pytest.mark.parametrize("method", PAIRS)
def test_each_step_is_that_of_the_library(method: str, data: Callable[[], Data]) -> None:
    options, theirs, factor, bound = PAIRS[method]
    steps = training(data(), method, **options)
    assert len({float(direction.norm()) for _, direction in steps}) == STEPS  # it moves
    other = theirs()
    worst = 0.0
    for jacobian, direction in steps:
        expected = other(jacobian) * factor(len(jacobian))
        worst = max(worst, float((direction - expected).norm() / expected.norm()))
    assert worst < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["imtl_g", "config"])
def test_projections_are_as_equal_as_the_librarys_or_more_so(method: str, dtype: torch.dtype) -> None:
    theirs = {"imtl_g": aggregation.IMTLG, "config": aggregation.ConFIG}[method]()
    for jacobian, _ in training(digits(), "mean"):
        rows = jacobian.to(dtype)
        ours = make_combiner(method, num_tasks=len(rows)).combine(rows)
        unit = jacobian / jacobian.norm(dim=1, keepdim=True)
        spread = []
        for direction in (ours, theirs(rows)):
            projections = unit @ direction.double()
            spread.append(float(projections.std() / projections.mean().abs()))
        assert spread[0] <= max(spread[1], 1e-12)
