"""Further methods over several updates, next to TorchJD's or to the lines of the authors' code."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtrl.combiners import make_combiner
from mtrl.combiners.bmtl import BMTL
from mtrl.combiners.m_config import MConFIG
from mtrl.combiners.moco import MoCo
from mtrl.combiners.sdmgrad import SDMGrad
from mtrl.combiners.stch import STCH
from tests.combiners.solvers.problems import MADE
from tests.helpers.evaluators import Linear
from tests.helpers.literature import config_direction, simplex_projection
from tests.helpers.matrices import jacobian


def library(name: str) -> Any:
    return getattr(pytest.importorskip("torchjd.aggregation"), name)


@pytest.mark.parametrize("tasks", [3, 10])
def test_config_is_torchjds_but_for_the_sum_over_tasks(tasks: int) -> None:
    for seed in range(3):
        rows = jacobian("iid", tasks, seed=seed)
        expected = library("ConFIG")()(rows) / tasks
        torch.testing.assert_close(make_combiner("config", num_tasks=tasks).combine(rows), expected)


def test_config_shares_imtl_gs_direction() -> None:
    rows = jacobian("common", 5, seed=3)
    pair = [make_combiner(name, num_tasks=5).combine(rows) for name in ("config", "imtl_g")]
    torch.testing.assert_close(*(d / d.norm() for d in pair))


def test_excess_risks_are_weighed_as_in_the_authors_code() -> None:
    combiner = make_combiner("excess_mtl", num_tasks=4, eta=0.3)
    sums, weights, initial = np.zeros((4, 16)), np.ones(4), None
    for seed in range(6):
        rows = jacobian("iid", 4, seed=seed)
        squares = rows.numpy() ** 2
        sums += squares
        excess = (squares / np.sqrt(sums + 1e-7)).sum(axis=1)
        if initial is None:
            initial = excess
        else:
            weights = weights * np.exp(0.3 * excess / initial)
            weights /= weights.sum()
        expected = torch.from_numpy(weights / weights.sum() @ rows.numpy())
        torch.testing.assert_close(combiner.combine(rows), expected)


@pytest.mark.dear
def test_smoothed_weights_are_torchjds() -> None:
    solver = library("MGDAWeighting")(epsilon=1e-12, max_iters=20_000)
    theirs = library("CRMOGMWeighting")(solver, alpha=0.9)
    ours = make_combiner("smoothed", num_tasks=3, base="mgda", decay=0.9)
    for seed in range(4):
        rows = jacobian("iid", 3, seed=seed)
        ours.combine(rows)
        expected = theirs(rows @ rows.T).double()
        torch.testing.assert_close(ours.last_weights.double(), expected, rtol=1e-3, atol=1e-4)


def test_tracked_gradients_follow_the_authors_code() -> None:
    generator = torch.Generator().manual_seed(0)
    combiner = make_combiner("moco", num_tasks=3)
    tracked, weights = np.zeros((3, 12)), np.full(3, 1.0 / 3.0)
    for update in range(1, 8):
        rows = jacobian("iid", 3, seed=update)
        losses = torch.rand(3, generator=generator, dtype=torch.float64) * 3.0
        aims = rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True) * losses.numpy()[:, None]
        tracked -= 0.5 / update**0.5 * (tracked - aims)
        logits = weights - 0.1 / update**0.5 * (tracked @ tracked.T @ weights)
        weights = np.exp(logits) / np.exp(logits).sum()
        torch.testing.assert_close(combiner.combine(rows, losses), torch.from_numpy(tracked.T @ weights))


def test_double_sampling_takes_products_between_batches() -> None:
    combiner = make_combiner("modo", num_tasks=4, gamma=0.02, rho=0.1)
    weights = np.full(4, 0.25)
    for seed in range(6):
        batches = [jacobian("iid", 4, seed=10 * seed + batch) for batch in range(3)]
        first, second, third = (rows.numpy() for rows in batches)
        moved = weights - 0.02 * (first @ (second.T @ weights) + 0.1 * weights)
        weights = np.array(simplex_projection(moved.tolist()))
        expected = torch.from_numpy(weights @ third)
        torch.testing.assert_close(combiner.direction(Linear(*batches)), expected)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_m_config_follows_the_authors_code_and_evaluates_one_task_per_update(scale: float) -> None:
    tasks, beta1, beta2 = 3, 0.9, 0.999
    combiner = MConFIG(num_tasks=tasks)
    means, counts = torch.zeros(tasks, 12, dtype=torch.float64), [0] * tasks
    pseudo, second, known = torch.zeros(12).double(), torch.zeros(12).double(), 0
    for update in range(10):
        problem = Linear(scale * jacobian("iid", tasks, seed=update))
        found = combiner.direction(problem)
        task = update % tasks
        asked = problem.asked[0].tasks
        assert asked is not None
        assert asked.tolist() == [task]
        counts[task] += 1
        means[task] = beta1 * means[task] + (1.0 - beta1) * problem.rows[task]
        if 0 in counts:
            assert (found == 0.0).all()
            continue
        known += 1
        corrected = torch.stack([means[i] / (1.0 - beta1 ** counts[i]) for i in range(tasks)])
        final = tasks * config_direction(corrected)  # the sum of the projections, beside the same eps
        now = final * (1.0 - beta1**known)
        gradient = (now - beta1 * pseudo) / (1.0 - beta1)
        pseudo = now
        second = beta2 * second + (1.0 - beta2) * gradient**2
        expected = final / ((second / (1.0 - beta2**known)).sqrt() + 1e-8)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_smooth_tchebycheff_is_the_gradient_of_its_objective() -> None:
    warmup, mu = 4, 0.7
    combiner = STCH(num_tasks=3, mu=mu, warmup=warmup)
    generator = torch.Generator().manual_seed(1)
    seen: list[Tensor] = []
    for update in range(8):
        losses = (torch.rand(3, generator=generator, dtype=torch.float64) + 0.1).requires_grad_()
        if update < warmup:
            seen.append(losses.detach())
            objective = losses.log().mean()
        else:
            objective = mu * torch.logsumexp((losses / torch.stack(seen).mean(0)).log() / mu, dim=0)
        (expected,) = torch.autograd.grad(objective, losses)
        torch.testing.assert_close(combiner.weights(losses), expected)


def test_a_temperature_in_units_of_the_deviation_does_not_see_the_losses_scale() -> None:
    plain, scaled = (BMTL(num_tasks=3, temperature=1.0, unit="deviation") for _ in range(2))
    generator = torch.Generator().manual_seed(2)
    history: list[float] = []
    for update in range(5):
        losses = torch.randn(3, generator=generator, dtype=torch.float64)
        weights = plain.weights(losses)
        torch.testing.assert_close(scaled.weights(1000.0 * losses + 7.0), weights)
        history.append(float(np.var(losses.numpy())))
        shares = [0.01 * 0.99**age for age in range(update, -1, -1)]
        deviation = math.sqrt(np.dot(shares, history) / sum(shares))
        torch.testing.assert_close(weights, torch.softmax(losses / deviation, dim=0))
    assert weights.max() > 0.5


def test_equal_losses_weigh_equal_in_any_unit() -> None:
    weights = BMTL(num_tasks=3, temperature=1.0, unit="deviation").weights(torch.ones(3))
    torch.testing.assert_close(weights, torch.full((3,), 1.0 / 3.0))


def test_no_variance_to_regularise_leaves_the_mean() -> None:
    rows = jacobian("iid", 4, seed=5)
    norms = rows.norm(dim=1)
    for lam, losses in ((0.0, torch.rand(4).double()), (3.0, 2.0 * norms)):
        direction = make_combiner("emtl", num_tasks=4, lam=lam).combine(rows, losses)
        torch.testing.assert_close(direction, rows.mean(dim=0))


def test_emtl_protects_tasks_from_half_precision_rows_too() -> None:
    """The rows are exact in bfloat16: the mean's small improvement of the first task is no rounding."""
    rows, losses = torch.tensor([[1.0, 0.0], [-0.96875, 0.5]]), torch.tensor([1.0, 5.0])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        combiner = make_combiner("emtl", num_tasks=2)
        combiner.combine(rows.to(dtype), losses.to(dtype))
        improvements = rows.double() @ (combiner.last_weights.double() @ rows.double())
        assert improvements.min() >= -1e-6


@pytest.mark.parametrize("short", [1e-2, 1e-3, 1e-9])
def test_a_short_gradient_takes_no_step_over(short: float) -> None:
    """By the published formula alone the short task weighs 1 / short^2 and others ascend."""
    rows = torch.tensor([[short, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    for order in itertools.permutations(range(3)):
        combiner, given = make_combiner("emtl", num_tasks=3), rows[list(order)]
        direction = combiner.combine(given, torch.ones(3, dtype=torch.float64))
        assert (given @ direction > 0.0).all()
        assert float(direction.norm()) <= 2.0 * float(rows.mean(dim=0).norm())


@pytest.mark.parametrize("lam", [0.1, 10.0, 1e12])
@pytest.mark.parametrize("tasks", [2, 5, 30])
def test_no_task_that_the_mean_improves_gets_worse(tasks: int, lam: float) -> None:
    moved = 0
    for seed in range(20):
        rows = jacobian("iid", tasks, seed) * torch.logspace(
            0, -seed % 7, tasks, dtype=torch.float64
        ).unsqueeze(1)
        combiner = make_combiner("emtl", num_tasks=tasks, lam=lam)
        improvements = rows @ combiner.combine(rows, torch.linspace(-1.0, 2.0, tasks).double())
        rounding = 1e-12 * rows.norm(dim=1) * rows.norm(dim=1).max()
        assert (improvements >= -rounding)[rows @ rows.mean(dim=0) > 0.0].all()
        weights = tasks * combiner.last_weights
        assert weights.min() >= -1e-12
        assert weights.max() <= 2.0 + 1e-12
        moved += bool((weights - 1.0).abs().max() > 0.05)
    assert moved >= 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tasks", [3, 10, 33])
def test_where_gradients_cancel_no_rounding_decides(tasks: int, dtype: torch.dtype) -> None:
    """In exact arithmetic the mean improves no task, in whatever order the tasks are."""
    for seed in range(5):
        rows = MADE["exactly_cancelling"](jacobian("iid", tasks, seed)).to(dtype)
        losses = torch.linspace(-1.0, 2.0, tasks).to(dtype)
        order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
        given, shuffled = (make_combiner("emtl", num_tasks=tasks, lam=1.0) for _ in range(2))
        given.combine(rows, losses)
        shuffled.combine(rows[order], losses[order])
        torch.testing.assert_close(shuffled.last_weights, given.last_weights[order], rtol=1e-4, atol=1e-6)


def test_temperatures_are_asked_for() -> None:
    problem = Linear(jacobian("iid", 3, seed=6))
    problem.temperatures = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    combiner = make_combiner("inverse_alpha", num_tasks=3)
    expected = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64) / 7.0 @ problem.rows
    torch.testing.assert_close(combiner.direction(problem), expected)
    assert problem.asked == []
    assert problem.backwards == 1
    problem.temperatures = None
    with pytest.raises(ValueError, match=r"needs the tasks' temperatures.*found none"):
        combiner.direction(problem)


def test_loss_proportional_steps_of_losses_that_only_fall_are_normalised_gradients() -> None:
    combiner = make_combiner("loss_proportional", num_tasks=4, shift="minimum")
    for update in range(3):
        rows = jacobian("iid", 4, seed=update)
        losses = torch.tensor([3.0, -1.0, 50.0, 0.0], dtype=torch.float64) - 2.0 * update
        expected = make_combiner("ngdiff", num_tasks=4).combine(rows)
        torch.testing.assert_close(combiner.combine(rows, losses), expected)


def test_weights_of_running_means_forget_all_steps_but_the_latest() -> None:
    combiner = MoCo(num_tasks=3, gamma=1e6)
    combiner.combine(jacobian("iid", 3, seed=1), torch.ones(3))
    assert combiner.w.max() / combiner.w.min().clamp(min=1e-300) > math.e
    combiner.gamma = 0.0
    combiner.combine(jacobian("iid", 3, seed=1), torch.ones(3))
    assert combiner.w.max() / combiner.w.min() <= math.e * (1.0 + 1e-12)


def test_a_linear_schedule_begins_at_no_noise_and_ends_at_the_rate() -> None:
    combiner = make_combiner("dropgrad", num_tasks=1, base="mean", rate=0.5, schedule="linear", ramp=4)
    ones = torch.ones(1, 40_000, dtype=torch.float64)
    dropped = [float((combiner.combine(ones) == 0.0).double().mean()) for _ in range(7)]
    assert dropped == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5], abs=0.01)


def test_a_linear_schedule_of_normal_noise_grows_in_deviation() -> None:
    options = {"rate": 0.5, "kind": "gaussian", "schedule": "linear", "ramp": 4}
    combiner = make_combiner("dropgrad", num_tasks=1, base="mean", **options)
    ones = torch.ones(1, 40_000, dtype=torch.float64)
    deviations = [float(combiner.combine(ones).std()) for _ in range(7)]
    assert deviations == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0], abs=0.02)


def test_a_zero_gradient_takes_all_weight_unless_others_conflict_with_the_mean() -> None:
    agreeing = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.0, 0.0]], dtype=torch.float64)
    opposed = torch.tensor([[4.0, 0.0], [-1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    found = []
    for rows, lam in ((agreeing, 10.0), (agreeing, 0.1), (opposed, 0.1), (opposed, 0.3), (opposed, 1.0)):
        combiner = SDMGrad(num_tasks=3, lam=lam)
        combiner.combine(rows)
        found.append(float(combiner.w[2]))
    assert found[:2] == pytest.approx([1.0, 1.0])
    assert found[2] > found[3] > found[4] >= 0.0
