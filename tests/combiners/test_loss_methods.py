"""Methods that weigh by losses, over several updates, next to the lines of their papers and torch's Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mtrl.combiners import LossCombiner, make_combiner


def histories(tasks: int, updates: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(tasks, generator=generator, dtype=torch.float64) + 0.1 for _ in range(updates)]


def made(name: str, **options: Any) -> LossCombiner:
    combiner = make_combiner(name, num_tasks=3, **options)
    assert isinstance(combiner, LossCombiner)
    return combiner


@pytest.mark.parametrize("window", [1, 2, 3])
def test_dwa_compares_the_last_two_complete_windows(window: int) -> None:
    combiner = made("dwa", window=window, temperature=0.7)
    seen = histories(3, 11)
    for update, losses in enumerate(seen, start=1):
        weights = combiner.weights(losses)
        complete = (update - 1) // window  # before this update
        ratio = torch.ones(3, dtype=torch.float64)
        if complete >= 2:
            means = [torch.stack(seen[k * window : (k + 1) * window]).mean(dim=0) for k in range(complete)]
            ratio = means[-1] / means[-2]
        torch.testing.assert_close(weights, torch.softmax(ratio / 0.7, dim=0))


def test_imtl_l_descends_on_its_objective() -> None:
    combiner = made("imtl_l", lr=0.05)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    learner = torch.optim.Adam([s], lr=0.05)
    for losses in histories(3, 6):
        torch.testing.assert_close(combiner.weights(losses), s.detach().exp() / 3)
        learner.zero_grad()
        (s.exp() * losses - s).sum().backward()
        learner.step()


def test_imtl_l_is_uw_with_twice_the_weights() -> None:
    pair = made("imtl_l", lr=0.05), made("uw", lr=0.05)
    for losses in histories(3, 6):
        ours, other = (combiner.weights(losses) for combiner in pair)
        torch.testing.assert_close(ours, 2.0 * other, rtol=1e-6, atol=0.0)


def test_ldc_descends_on_losses_and_discrepancies_of_neighbours() -> None:
    combiner = made("ldc_mtl", lam=0.8, lr=0.05)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    learner = torch.optim.Adam([logits], lr=0.05)
    for losses in histories(3, 6):
        losses.requires_grad_()
        weighted = torch.softmax(logits, dim=0) * losses
        learner.zero_grad()
        (weighted.sum() + 0.8 * (weighted[:-1] - weighted[1:]).abs().sum()).backward()
        # As in the authors' code, parameters and weights have one objective and one backward pass.
        torch.testing.assert_close(combiner.weights(losses.detach()), losses.grad)
        learner.step()


def test_gls_does_not_see_the_scale_of_a_loss() -> None:
    combiner, factors = made("gls"), torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64)
    losses = histories(3, 1)[0]
    # The gradient of loss t is `factors[t]` times as long, and its weight is that much smaller.
    changed = combiner.weights(losses * factors) * factors
    plain = combiner.weights(losses)
    torch.testing.assert_close(changed / changed.sum(), plain / plain.sum())
