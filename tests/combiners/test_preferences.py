"""Fixed weights and preferences, next to plain sums, to TorchJD and to a conic solver."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from mtrl.combiners import make_combiner
from tests.helpers.matrices import jacobian

PREFERENCE = (0.5, 0.0, 2.0, 0.1)
OPTIONS = [
    ("mean", "weights"),
    ("cagrad", "preference"),
    ("upgrad", "preference"),
    ("dual_proj", "preference"),
]


def test_fixed_weights_are_the_gradient_of_the_weighted_sum() -> None:
    rows = jacobian("iid", 4, seed=0)
    expected = 0.5 * rows[0] + 2.0 * rows[2] + 0.1 * rows[3]
    torch.testing.assert_close(make_combiner("mean", num_tasks=4, weights=PREFERENCE).combine(rows), expected)


@pytest.mark.parametrize(("name", "aggregator"), [("upgrad", "UPGrad"), ("dual_proj", "DualProj")])
def test_preferences_mean_what_they_mean_in_torchjd(name: str, aggregator: str) -> None:
    library: Any = pytest.importorskip("torchjd.aggregation")
    projector = pytest.importorskip("torchjd.linalg").QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    for preference in ((), PREFERENCE, (1.0, 1.0, 1.0, 1.0)):
        vector = torch.tensor(preference, dtype=torch.float64) if preference else None
        theirs = getattr(library, aggregator)(pref_vector=vector, projector=projector)
        ours = make_combiner(name, num_tasks=4, preference=preference)
        for family in ("iid", "conflicting", "spread_2"):
            rows = jacobian(family, 4, seed=3)
            scale = float(rows.norm(dim=1).max())
            torch.testing.assert_close(ours.combine(rows), theirs(rows), rtol=1e-6, atol=1e-6 * scale)
            assert ours.metrics()["residual"] < 1e-6


def test_a_preference_moves_the_centre_of_cagrads_ball() -> None:
    for seed in range(4):
        rows = jacobian("conflicting", 4, seed)
        combiner = make_combiner("cagrad", num_tasks=4, c=0.4, rescale=0, preference=PREFERENCE)
        found = combiner.combine(rows)
        centre = torch.tensor(PREFERENCE, dtype=torch.float64) @ rows
        d = cp.Variable(rows.shape[1])
        ball = [cp.norm(d - centre.numpy()) <= 0.4 * float(centre.norm())]
        best = cp.Problem(cp.Maximize(cp.min(rows.numpy() @ d)), ball).solve(solver=cp.CLARABEL)
        assert float((found - centre).norm()) <= 0.4 * float(centre.norm()) * (1.0 + 1e-9)
        assert float((rows @ found).min()) == pytest.approx(best, rel=1e-6)
        assert combiner.metrics()["residual"] < 1e-9


@pytest.mark.parametrize(
    ("preference", "lengths"),
    [((1e-8, 1e-8), (1.0, 1.0)), ((1.0, 0.0), (1e-8, 1.0)), ((0.0, 1e-5), (1.0, 1e-6))],
)
def test_a_ball_around_a_short_sum_is_a_ball(
    preference: tuple[float, float], lengths: tuple[float, float]
) -> None:
    rows = torch.tensor([[1.0, 0.0, 0.2], [-0.5, 1.0, 0.1]], dtype=torch.float64)
    rows = rows * torch.tensor(lengths, dtype=torch.float64).unsqueeze(-1)
    combiner = make_combiner("cagrad", num_tasks=2, c=0.4, rescale=0, preference=preference)
    centre = torch.tensor(preference, dtype=torch.float64) @ rows
    away = combiner.combine(rows) - centre
    torch.testing.assert_close(away.norm(), 0.4 * centre.norm(), rtol=1e-6, atol=0.0)
    assert combiner.metrics()["residual"] < 1e-9


def test_equal_preferences_of_sum_one_change_nothing() -> None:
    rows, equal = jacobian("conflicting", 4, seed=1), (0.25,) * 4
    for name, option in (("cagrad", "preference"), ("upgrad", "preference"), ("mean", "weights")):
        plain, preferred = (
            make_combiner(name, num_tasks=4),
            make_combiner(name, num_tasks=4, **{option: equal}),
        )
        torch.testing.assert_close(preferred.combine(rows), plain.combine(rows))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_any_sequence_of_numbers_is_taken(name: str, option: str, kind: Any) -> None:
    rows = jacobian("conflicting", 4, seed=1)
    expected = make_combiner(name, num_tasks=4, **{option: PREFERENCE}).combine(rows)
    found = make_combiner(name, num_tasks=4, **{option: kind(PREFERENCE)}).combine(rows)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "value", [(1.0, 1.0), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), (1.0, float("nan"), 1.0), 2.0, "abc", None]
)
@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_a_preference_that_does_not_fit_the_tasks_is_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .*>= 0"):
        make_combiner(name, num_tasks=3, **{option: value})


def test_the_published_loop_of_cagrad_has_no_preference() -> None:
    with pytest.raises(ValueError, match="preference must be empty with solver='paper'"):
        make_combiner("cagrad", num_tasks=2, solver="paper", preference=(1.0, 2.0))
