from __future__ import annotations

import pytest
import torch

from mtrl.combiners.graddrop import GradDrop
from tests.helpers.matrices import jacobian

DRAWS = 1500


@pytest.mark.dear
def test_signs_are_kept_as_often_as_their_share_says() -> None:
    rows = jacobian("iid", 5, seed=0, parameters=8)
    combiner, positive = GradDrop(num_tasks=5), torch.zeros(8, dtype=torch.float64)
    for _ in range(DRAWS):
        positive += combiner.combine(rows) > 0.0
    share = (1.0 + rows.sum(0) / rows.abs().sum(0)) / 2.0
    deviation = (share * (1.0 - share) / DRAWS).sqrt()
    assert ((positive / DRAWS - share).abs() < 5.0 * deviation).all()


@pytest.mark.dear
def test_parameters_are_drawn_independently() -> None:
    rows = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, 6)
    combiner = GradDrop(num_tasks=2)
    signs = torch.stack([combiner.combine(rows).sign() for _ in range(DRAWS)])
    correlations = signs.T @ signs / DRAWS - torch.eye(6, dtype=torch.float64)
    assert correlations.abs().max() < 5.0 / DRAWS**0.5


def test_agreement_passes_untouched_whatever_is_drawn() -> None:
    rows = jacobian("iid", 4, seed=1).abs() * torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)
    combiner = GradDrop(num_tasks=4)
    for _ in range(50):
        torch.testing.assert_close(combiner.combine(rows), rows.mean(0))


@pytest.mark.parametrize("leak", [0.25, 1.0])
def test_what_leaks_is_the_same_share_of_every_gradient(leak: float) -> None:
    rows = jacobian("iid", 4, seed=2)
    strict, leaking = GradDrop(num_tasks=4), GradDrop(num_tasks=4, leak=leak)
    for _ in range(3):
        expected = (1.0 - leak) * strict.combine(rows) + leak * rows.mean(0)
        torch.testing.assert_close(leaking.combine(rows), expected)


@pytest.mark.dear
def test_torchjd_agrees_on_the_average() -> None:
    library = pytest.importorskip("torchjd.aggregation")
    rows = jacobian("iid", 3, seed=3, parameters=5)
    combiner, theirs = GradDrop(num_tasks=3), library.GradDrop()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.stack([theirs(rows) / 3 for _ in range(DRAWS)]).mean(0)
    result = torch.stack([combiner.combine(rows) for _ in range(DRAWS)]).mean(0)
    torch.testing.assert_close(result, expected, rtol=0.0, atol=5.0 * float(rows.abs().max()) / DRAWS**0.5)


def test_draws_are_independent_of_the_global_random_stream() -> None:
    rows = jacobian("conflicting", 5, seed=2)
    before = torch.get_rng_state()
    first = GradDrop(num_tasks=5).combine(rows)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, GradDrop(num_tasks=5).combine(rows))
