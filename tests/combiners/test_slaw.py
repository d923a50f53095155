from __future__ import annotations

import pytest
import torch

from mtrl.combiners.slaw import SLAW


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_weights_are_inverse_running_deviations(decay: float) -> None:
    """Against sums over the whole history with the weight that each loss has in the average."""
    generator = torch.Generator().manual_seed(0)
    history = (
        torch.randn(60, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1]) - 2.0
    )
    combiner = SLAW(num_tasks=3, decay=decay)
    shares: list[float] = []
    for count in range(1, len(history) + 1):
        weights = combiner.weights(history[count - 1])
        rate = max(1.0 / count, 1.0 - decay)
        shares = [share * (1.0 - rate) for share in shares] + [rate]
        used = torch.tensor(shares, dtype=torch.float64).unsqueeze(-1)
        assert float(used.sum()) == pytest.approx(1.0)
        mean = (used * history[:count]).sum(0)
        deviation = (used * (history[:count] - mean).square()).sum(0).sqrt()
        expected = torch.full((3,), 1.0 / 3.0, dtype=torch.float64)
        if count > 1:
            expected = deviation.reciprocal() / deviation.reciprocal().sum()
        torch.testing.assert_close(weights, expected)


def test_early_averages_are_plain_ones() -> None:
    history = torch.tensor([[3.0, 0.0], [1.0, 10.0], [-1.0, 5.0]], dtype=torch.float64)
    combiner = SLAW(num_tasks=2)
    for losses in history:
        weights = combiner.weights(losses)
    deviation = history.std(0, correction=0)
    torch.testing.assert_close(weights[0] / weights[1], deviation[1] / deviation[0])


def test_neither_an_offset_nor_its_size_matters_to_a_loss() -> None:
    """Losses of any sign: the deviation ignores an offset even where it dwarfs the changes."""
    generator = torch.Generator().manual_seed(1)
    history = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    plain, offset = SLAW(num_tasks=2), SLAW(num_tasks=2)
    for losses in history:
        expected = plain.weights(losses)
        weights = offset.weights(losses - 1e7)
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0.0)


def test_losses_that_stand_still_give_equal_weights() -> None:
    combiner = SLAW(num_tasks=2)
    for _ in range(3):
        weights = combiner.weights(torch.tensor([1.0, 100.0], dtype=torch.float64))
    assert weights.tolist() == [0.5, 0.5]
