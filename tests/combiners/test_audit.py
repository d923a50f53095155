"""Minimal inputs on which methods once failed, each with what an independent computation says."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mtrl.combiners import GramCombiner, make_combiner
from tests.helpers.conic import best_worst_improvement_in_ball
from tests.helpers.evaluators import Linear
from tests.helpers.matrices import jacobian


def double(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_cagrad_with_a_small_ball_and_spread_norms_gives_the_conic_optimum() -> None:
    rows = double(
        [300, 100, 300, -200], [0, 0.002, -0.003, 0.001], [-20, -30, 20, 10], [-2000, 3000, -3000, -3000]
    )
    combiner = make_combiner("cagrad", num_tasks=4, c=0.1, rescale=0)
    worst = float((rows @ combiner.combine(rows)).min())
    # In rows a thousandth as long, since the conic solver's tolerances are absolute.
    best = 1e6 * best_worst_improvement_in_ball(rows / 1e3, 0.1)
    radius = 0.1 * float(rows.mean(dim=0).norm())
    assert worst >= best - 1e-5 * radius * float(rows.norm(dim=1).max())
    assert worst == pytest.approx(-34680.0, abs=1.0)
    assert float(combiner.metrics()["residual"]) < 1e-9


@pytest.mark.parametrize("decades", [9, 10, 12])
def test_a_gradient_counts_however_short_it_is_next_to_another(decades: int) -> None:
    long = 10.0**decades
    rows = double([1.0, 0.0], [long * math.cos(2.0), long * math.sin(2.0)])
    assert float(make_combiner("mgda", num_tasks=2).combine(rows).norm()) == pytest.approx(
        math.sin(2.0), rel=1e-3
    )
    cagrad = make_combiner("cagrad", num_tasks=2, c=0.9, rescale=0).combine(rows)
    assert float(cagrad[0]) == pytest.approx(0.2419 * long, rel=1e-3)


def test_parallel_double_gradients_give_imtl_g_finite_weights() -> None:
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        factors = torch.rand(25, 1, generator=generator, dtype=torch.float64) + 0.1
        rows = factors @ torch.randn(1, 1000, generator=generator, dtype=torch.float64)
        result = make_combiner("imtl_g", num_tasks=25).combine(rows)
        assert torch.nn.functional.cosine_similarity(result, rows[0], dim=0) > 0.999


def test_conicgrad_in_single_precision_finds_a_direction_for_all_of_fifty_tasks() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 2000, generator=generator, dtype=torch.float64)
    rows = rows - 0.99 * rows.mean(dim=0)
    exact, single = (
        make_combiner("conicgrad", num_tasks=50).combine(r).double() for r in (rows, rows.float())
    )
    assert (rows @ exact).min() > 0.0
    assert (rows @ single).min() > 0.0
    assert torch.nn.functional.cosine_similarity(exact, single, dim=0) > 0.999


def test_a_wider_cone_never_costs_the_worst_task_more() -> None:
    for seed in range(10):
        rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        worst = []
        for c in (0.0, 0.2, 0.5, 0.7, 0.9, 0.99, 1.0):
            direction = make_combiner("conicgrad", num_tasks=4, c=c).combine(rows)
            assert float(direction.norm()) == pytest.approx(float(rows.mean(dim=0).norm()), rel=1e-6)
            worst.append(float((rows @ direction).min()))
        assert all(wider >= narrower - 1e-6 for wider, narrower in itertools.pairwise(worst))


@pytest.mark.parametrize(("tasks", "sampled"), [(1, 4), (5, 1), (1, 1)])
def test_cagrad_fast_without_a_single_task_is_a_multiple_of_the_mean(tasks: int, sampled: int) -> None:
    rows = jacobian("iid", tasks, seed=0)
    source = Linear(rows)
    combiner = make_combiner("cagrad_fast", num_tasks=tasks, sampled=sampled)
    torch.testing.assert_close(combiner.direction(source), rows.mean(dim=0))
    torch.testing.assert_close(combiner.combine(rows), rows.mean(dim=0))
    assert source.asked == []


def test_sdmgrad_on_three_batches_logs_about_the_batch_of_its_direction() -> None:
    batches = [jacobian("iid", 5, seed) for seed in range(3)]
    combiner = make_combiner("sdmgrad", num_tasks=5, solver="paper", batches=3)
    direction = combiner.direction(Linear(*batches))
    metrics = combiner.metrics()
    ratio = direction.norm() / batches[2].mean(dim=0).norm()
    torch.testing.assert_close(metrics["direction_norm_ratio"], ratio, rtol=1e-5, atol=0.0)
    assert -1.0 <= float(metrics["cos_min"]) <= float(metrics["cos_mean"]) <= 1.0


@pytest.mark.parametrize("seed", [5, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5))])
def test_fairgrad_is_solved_at_the_end_of_its_range(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(25, 50, generator=generator, dtype=torch.float64)
    rows *= 10.0 ** (4.0 * (2.0 * torch.rand(25, 1, generator=generator, dtype=torch.float64) - 1.0))
    gram = rows @ rows.T
    combiner = make_combiner("fairgrad", num_tasks=25, alpha=5.0)
    assert isinstance(combiner, GramCombiner)
    weights = combiner.weights(gram)
    assert float((weights**0.2 * (gram @ weights) - 1.0).abs().max()) < 1e-5
