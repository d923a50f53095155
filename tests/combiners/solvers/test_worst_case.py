"""Weak duality is the oracle: no direction improves the worst task more than any dual point allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.combiners.solvers.backends import by_numpy
from mtrl.combiners.solvers.path import tolerance_of
from mtrl.combiners.solvers.worst_case import best_around, best_in_cone, in_ball
from tests.combiners.solvers.problems import drawn, dtypes, gramian_of, kinds, problem, sizes, symmetric


def best_in_ball(gram: Tensor, linear: Tensor, *, eps: float) -> Tensor:
    """The weights of the best step and the dual [2, T]."""
    with np.errstate(all="ignore"):
        found = by_numpy(in_ball, symmetric(gram).numpy(), linear.numpy(), tolerance_of(eps))
    return torch.from_numpy(found[:, : len(gram)])


def gap_in_ball(gram: Tensor, linear: Tensor, weights: Tensor, dual: Tensor) -> float:
    """Dual value less worst improvement, over the mean norm under the dual solution."""
    bound = dual @ linear + (dual @ gram @ dual).clamp(min=0.0).sqrt()
    worst = (linear + gram @ weights).min()
    return float((bound - worst) / (dual @ gram.diagonal().sqrt()))


def shortfalls(gram: Tensor, linear: Tensor, weights: Tensor, dual: Tensor) -> Tensor:
    """What each task gains less than the dual value [T], over the task's own norm."""
    bound = dual @ linear + (dual @ gram @ dual).clamp(min=0.0).sqrt()
    return (bound - (linear + gram @ weights)) / gram.diagonal().sqrt()


@sizes
@dtypes
@kinds
def test_no_step_in_the_ball_is_better(family: str, decades: float, dtype: torch.dtype, tasks: int) -> None:
    gram = gramian_of(drawn(family, decades, tasks, seed=7), dtype)
    exact, eps = symmetric(gram), torch.finfo(dtype).eps
    products = exact.mean(dim=1)
    # Where gradients depend on each other, entries in single precision decide no better than their root;
    # where their norms besides differ by decades, each task's gain in units of its own norm.
    vague = family == "deficient" and dtype == torch.float32
    bound = eps**0.5 if vague else 1e-5
    for c in (0.02, 0.1, 0.3, 0.9, 1.0):
        linear = products / (c * products.mean().sqrt())
        weights, dual = best_in_ball(gram, linear, eps=eps)
        assert (dual >= 0.0).all(), c
        assert float(dual.sum()) == pytest.approx(1.0, abs=1e-12), c
        assert float(weights @ exact @ weights) <= 1.0 + 1e-6, c
        if vague and decades:
            assert float(shortfalls(exact, linear, weights, dual).max()) <= bound, c
        else:
            assert gap_in_ball(exact, linear, weights, dual) <= bound, c


@sizes
@dtypes
@kinds
def test_no_direction_in_the_cone_is_better(
    family: str, decades: float, dtype: torch.dtype, tasks: int
) -> None:
    gram = gramian_of(drawn(family, decades, tasks, seed=8), dtype)
    exact, eps = symmetric(gram), torch.finfo(dtype).eps
    products = exact.mean(dim=1)
    length = products.mean().sqrt()
    lifted = torch.cat((torch.cat((exact, (products / length)[:, None]), 1), torch.ones(1, tasks + 1)))
    lifted[-1, :-1] = products / length
    for c in (0.0, 0.1, 0.5, 0.9, 0.99):
        found, _, reach = best_in_cone(gram, c, eps=eps)
        gains = lifted @ found
        assert float(found @ gains) == pytest.approx(1.0, abs=1e-6), c
        assert float(gains[-1]) >= c - 1e-6, c
        # Of unit length the value of the dual's own point, |g_w + eta e0| - c eta, proves it. Shorter
        # before it was stretched, because gradients cancel: tasks with weight gain all the same, none less.
        dual = found / found[:-1].sum()
        scale = float(dual[:-1] @ exact.diagonal().sqrt())
        worst = float(gains[:-1].min())
        if reach > 1.0 - 1e-9:
            bound = (dual @ lifted @ dual).clamp(min=0.0).sqrt() - c * dual[-1]
            assert float(bound) - worst <= 1e-5 * scale, c
        else:
            assert float(dual[:-1] @ gains[:-1]) - worst <= 1e-5 * scale, c


@pytest.mark.parametrize("seed", range(8))
def test_a_gramian_whose_entries_are_rounded_apart_is_no_other_problem(seed: int) -> None:
    gram = gramian_of(drawn("iid", 4.0, 10, seed), torch.float32)
    exact = symmetric(gram)
    noise = torch.rand(10, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    lengths = exact.diagonal().sqrt()
    apart = exact + (noise - noise.T) * 6e-8 * torch.outer(lengths, lengths)  # as products on some CPUs are
    linear, radius = exact.mean(dim=1) / exact.mean().sqrt(), exact.mean().sqrt()
    weights, dual = best_around(
        apart, torch.full((10,), 0.1, dtype=torch.float64), 1.0, eps=torch.finfo(torch.float32).eps
    )
    weights = (weights - 0.1) / radius
    assert gap_in_ball(exact, linear, weights, dual) <= 1e-5


def test_gradients_that_cancel_leave_the_shortest_of_the_best_steps() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    linear = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
    weights, dual = best_in_ball(rows @ rows.T, linear, eps=2e-16)
    # Of the first two tasks one gains what the other loses: 0.4 is the best, and the third has it already.
    torch.testing.assert_close(weights @ rows, torch.tensor([0.1, 0.0], dtype=torch.float64))
    torch.testing.assert_close(dual, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("tasks", [3, 7, 10, 25, 33, 50])
def test_a_mean_of_which_only_rounding_is_left_makes_no_cone(tasks: int) -> None:
    for seed in range(4):
        # Whole numbers that cancel exactly; the weights 1/T are rounded.
        gram = problem("exactly_cancelling", 0.0, tasks, seed, torch.float64)
        weights, length, _ = best_in_cone(gram, 0.5, eps=2e-16)
        assert length == 0.0
        assert weights[-1] == 0.0


def test_nothing_is_lost_between_norms_twelve_decades_apart() -> None:
    for decades in (1, 6, 9, 10, 11, 12):
        angle = 2.0
        rows = torch.tensor(
            [[1.0, 0.0], [10.0**decades * math.cos(angle), 10.0**decades * math.sin(angle)]],
            dtype=torch.float64,
        )
        gram = rows @ rows.T
        # Without offsets the best unit step gives both the same, the larger gradient's share being tiny.
        weights = best_in_ball(gram, torch.zeros(2, dtype=torch.float64), eps=2e-16)[0]
        step = weights @ rows
        ratio = 10.0**-decades
        expected = math.sin(angle) / math.sqrt(1.0 + ratio**2 - 2.0 * ratio * math.cos(angle))
        assert float(rows[0] @ step) == pytest.approx(expected, rel=1e-6)


def test_a_gradient_fades_out_without_a_jump() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    steps = []
    for exponent in torch.linspace(-20.0, -13.0, 141, dtype=torch.float64):
        scaled = rows * torch.tensor([[1.0], [10.0 ** float(exponent)]], dtype=torch.float64)
        weights, _ = best_in_ball(scaled @ scaled.T, torch.tensor([0.1, 0.0]).double(), eps=2e-16)
        steps.append(weights @ scaled)
    changes = torch.stack(steps).diff(dim=0).norm(dim=1)
    assert float(changes.max()) < 0.1
