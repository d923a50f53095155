from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from tests.helpers.matrices import jacobian
from tests.helpers.properties import assert_best_in_ball


def direction(rows: Tensor, c: float, rescale: int = 0) -> Tensor:
    return make_combiner("cagrad", num_tasks=len(rows), c=c, rescale=rescale).combine(rows)


def test_without_a_ball_it_is_the_mean() -> None:
    rows = jacobian("iid", 5, seed=0)
    torch.testing.assert_close(direction(rows, c=0.0), rows.mean(dim=0))


@pytest.mark.parametrize("c", [0.1, 0.5, 2.0])
def test_other_radii_are_solved_too(c: float) -> None:
    rows = jacobian("conflicting", 6, seed=1)
    assert_best_in_ball(rows, direction(rows, c), c=c)


def test_the_direction_lies_on_the_sphere_around_the_mean() -> None:
    rows = jacobian("iid", 6, seed=2)
    mean = rows.mean(dim=0)
    torch.testing.assert_close((direction(rows, c=0.5) - mean).norm(), 0.5 * mean.norm())


@pytest.mark.parametrize(("rescale", "divisor"), [(1, 1.0 + 0.25), (2, 1.5)])
def test_rescaling_divides_the_direction(rescale: int, divisor: float) -> None:
    rows = jacobian("iid", 6, seed=3)
    torch.testing.assert_close(direction(rows, 0.5, rescale), direction(rows, 0.5) / divisor)


def test_a_large_ball_gives_the_min_norm_direction() -> None:
    rows = jacobian("iid", 6, seed=4)
    shortest = make_combiner("sdmgrad", num_tasks=6, lam=0.0).combine(rows)
    result = direction(rows, c=1e6)
    assert torch.nn.functional.cosine_similarity(result, shortest, dim=0) > 1.0 - 1e-9


def test_it_equals_sdmgrad_at_the_matching_weight_of_the_mean() -> None:
    # With w the dual solution, lam = |g_w| / (c |g0|) makes both problems' optimality conditions the same.
    rows, c = jacobian("iid", 6, seed=5), 0.5
    mean = rows.mean(dim=0)
    added = direction(rows, c) - mean
    assert added.norm() > 0
    weights = torch.linalg.lstsq(rows.T, added.unsqueeze(-1)).solution.squeeze(-1)
    lam = (1.0 / weights.sum()).item()  # added = g_w / lam and w sums to one
    oriented = make_combiner("sdmgrad", num_tasks=6, lam=lam).combine(rows)
    torch.testing.assert_close(oriented * (1.0 + lam) / lam, mean + added, rtol=1e-7, atol=1e-8)


def published(rows: Tensor, c: float) -> Tensor:
    """The inner loop of the authors' RL code as its paper repository describes it, on autograd and SGD."""
    tasks = len(rows)
    gram = rows @ rows.T
    gram = gram / (gram.diagonal() + 1e-4).sqrt().mean().square()
    products = gram.mean(dim=1)
    radius = c * (products.mean() + 1e-4).sqrt()
    logits = torch.zeros(tasks, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=50.0 if tasks == 50 else 25.0, momentum=0.5)
    points = []
    for _ in range(21):
        optimizer.zero_grad()
        w = logits.softmax(dim=0)
        value = w @ products + radius * (w @ gram @ w + 1e-4).sqrt()
        points.append((value.item(), w.detach()))
        value.backward()
        optimizer.step()
    w = min(points, key=lambda point: point[0])[1]
    pull = radius / ((w @ gram @ w + 1e-4).sqrt() + 1e-4)
    return (rows.mean(dim=0) + pull * (w @ rows)) / (1.0 + c**2)


@pytest.mark.parametrize("family", ["iid", "common", "conflicting", "spread_2"])
@pytest.mark.parametrize(("tasks", "c"), [(10, 0.9), (50, 0.5)])
def test_the_published_inner_loop_is_followed_step_by_step(family: str, tasks: int, c: float) -> None:
    rows = jacobian(family, tasks, seed=6)
    result = make_combiner("cagrad", num_tasks=tasks, c=c, solver="paper").combine(rows)
    expected = published(rows, c)
    # Steps this long magnify rounding errors.
    assert (result - expected).norm() <= 1e-5 * expected.norm()


def test_the_published_inner_loop_leaves_a_gap_that_the_metrics_show() -> None:
    rows = jacobian("spread_2", 10, seed=7)
    gaps = []
    for solver in ("exact", "paper"):
        combiner = make_combiner("cagrad", num_tasks=10, solver=solver)
        combiner.combine(rows)
        gaps.append(combiner.metrics()["residual"].item())
    assert gaps[0] < 1e-9
    assert gaps[1] > 1e-3
