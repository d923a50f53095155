from __future__ import annotations

import pytest
import torch

from mtrl.combiners import make_combiner
from tests.helpers.matrices import jacobian


@pytest.mark.parametrize("family", ["iid", "common", "conflicting"])
def test_the_published_difference_form_agrees(family: str) -> None:
    # w[1:] = g_0 U' (D U')^-1 with D = g_0 - g_i and U = u_0 - u_i, w[0] the rest of 1.
    for seed in range(5):
        rows = jacobian(family, 6, seed)
        unit = rows / rows.norm(dim=1, keepdim=True)
        differences, turns = rows[0] - rows[1:], unit[0] - unit[1:]
        others = torch.linalg.solve((differences @ turns.T).T, turns @ rows[0])
        weights = torch.cat((1.0 - others.sum().view(1), others))
        combiner = make_combiner("imtl_g", num_tasks=6)
        torch.testing.assert_close(combiner.combine(rows), weights @ rows, rtol=1e-7, atol=1e-8)


def test_two_tasks_weigh_inversely_to_their_norms() -> None:
    rows = jacobian("spread_2", 2, seed=1)
    inverse = 1.0 / rows.norm(dim=1)
    result = make_combiner("imtl_g", num_tasks=2).combine(rows)
    torch.testing.assert_close(result, inverse / inverse.sum() @ rows, rtol=1e-9, atol=1e-12)


def test_gradient_lengths_change_the_length_of_the_direction_alone() -> None:
    rows = jacobian("iid", 6, seed=2)
    factors = 10.0 ** torch.linspace(-4.0, 4.0, 6, dtype=torch.float64)
    first, second = (
        make_combiner("imtl_g", num_tasks=6).combine(value) for value in (rows, rows * factors.unsqueeze(-1))
    )
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 1.0 - 1e-9


def test_a_negative_sum_of_weights_does_not_lead_uphill() -> None:
    # The second of three gradients is short and must be left behind to project the others equally.
    rows = torch.tensor([[1.0, 0.1, 0.0], [0.02, 0.0, 0.0], [1.0, -0.1, 0.01]], dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    raw = torch.linalg.solve(unit @ unit.T, torch.ones(3, dtype=torch.float64)) / rows.norm(dim=1)
    assert raw.sum() < 0.0
    result = make_combiner("imtl_g", num_tasks=3).combine(rows)
    torch.testing.assert_close(result, -(raw / raw.sum()) @ rows, rtol=1e-6, atol=1e-9)
    assert (rows @ result > 0.0).all()


def test_a_vanishing_sum_of_weights_does_not_blow_the_direction_up() -> None:
    rows = torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.0], [1.0, -0.1, 0.01]], dtype=torch.float64)
    unit = rows / rows.norm(dim=1, keepdim=True)
    equal = torch.linalg.solve(unit @ unit.T, torch.ones(3, dtype=torch.float64))
    lengths = torch.ones(3, dtype=torch.float64)
    lengths[1] = -equal[1] / (equal[0] + equal[2])
    assert (equal / lengths).sum().abs() < 1e-6 * equal.abs().sum()
    result = make_combiner("imtl_g", num_tasks=3).combine(unit * lengths.unsqueeze(-1))
    assert result.norm() <= 1e3 * lengths.sum()
    assert (unit @ result > 0.0).all()


def test_dependent_gradients_without_equal_projections_give_almost_no_direction() -> None:
    for seed in range(5):
        rows = jacobian("deficient", 10, seed)
        result = make_combiner("imtl_g", num_tasks=10).combine(rows)
        assert result.norm() <= 1e-3 * rows.norm(dim=1).max()


def test_the_library_of_another_group_agrees() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed in range(3):
        rows = jacobian("iid", 6, seed)
        result = make_combiner("imtl_g", num_tasks=6).combine(rows)
        torch.testing.assert_close(result, aggregation.IMTLG()(rows), rtol=1e-7, atol=1e-8)
