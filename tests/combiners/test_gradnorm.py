from __future__ import annotations

import pytest
import torch

from mtrl.combiners.gradnorm import GradNorm
from tests.helpers.matrices import jacobian


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_weights_descend_on_the_papers_loss(alpha: float) -> None:
    """Equation 2, its derivative by autograd through the weights' parametrisation, torch's Adam."""
    generator = torch.Generator().manual_seed(0)
    combiner = GradNorm(num_tasks=4, alpha=alpha)
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025)
    first = torch.empty(0)
    for step in range(15):
        rows = jacobian("spread_2", 4, seed=step)
        losses = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
        first = losses if step == 0 else first
        weights = 4.0 * logits.softmax(0)
        torch.testing.assert_close(combiner.combine(rows, losses), (weights.detach() @ rows) / 4.0)
        norms = torch.stack([row.square().sum().sqrt() for row in rows])
        remaining = losses / first
        target = (weights * norms).mean() * (remaining / remaining.mean()) ** alpha
        distance = (weights * norms - target.detach()).abs().sum() / (weights * norms).mean().detach()
        (logits.grad,) = torch.autograd.grad(distance, logits)
        adam.step()
        torch.testing.assert_close(combiner.logits.value, logits.detach())


@pytest.mark.dear
def test_steady_gradients_end_at_equal_norms() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.2]], dtype=torch.float64)
    losses = torch.ones(3, dtype=torch.float64)
    combiner = GradNorm(num_tasks=3)
    for _ in range(2000):
        direction = combiner.combine(rows, losses)
    torch.testing.assert_close(direction, direction.mean().expand(3), rtol=0.05, atol=0.0)


@pytest.mark.dear
def test_a_task_that_trains_slower_gets_the_longer_gradient() -> None:
    rows, combiner = torch.eye(2, dtype=torch.float64), GradNorm(num_tasks=2, alpha=1.0)
    combiner.combine(rows, torch.tensor([1.0, 4.0], dtype=torch.float64))
    for _ in range(2000):
        direction = combiner.combine(rows, torch.tensor([0.8, 1.6], dtype=torch.float64))
    assert float(direction[0] / direction[1]) == pytest.approx(2.0, rel=0.05)


def test_the_weight_of_a_task_without_a_gradient_stays_while_the_others_are_evened_out() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    combiner, losses = GradNorm(num_tasks=3), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    for _ in range(800):
        direction = combiner.combine(rows, losses)
    # Two thirds of the weight are theirs, as 3 to 1.
    torch.testing.assert_close(direction, torch.tensor([0.5, 0.5, 0.0]).double(), rtol=0.05, atol=0.0)
    combiner.combine(torch.zeros_like(rows), losses)
    assert combiner.logits.value.isfinite().all()
