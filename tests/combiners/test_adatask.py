from __future__ import annotations

import pytest
import torch

from mtrl.combiners.adatask import AdaTask
from tests.helpers.matrices import jacobian


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_twenty_steps_equal_torchs_adam_per_task(reduction: str) -> None:
    combiner = AdaTask(num_tasks=3, reduction=reduction)  # type: ignore[arg-type]
    tasks = [torch.zeros(12, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    adams = [torch.optim.Adam([task], lr=1e-2) for task in tasks]
    theta = torch.zeros(12, dtype=torch.float64)
    for step in range(20):
        rows = jacobian("spread_2", 3, seed=step)
        for task, adam, row in zip(tasks, adams, rows, strict=True):
            task.grad = row.clone()
            adam.step()
        theta -= 1e-2 * combiner.combine(rows)
        moved = sum(task.detach() for task in tasks)
        torch.testing.assert_close(theta, moved if reduction == "sum" else moved / 3)


def test_a_task_with_huge_gradients_does_not_slow_the_others_down() -> None:
    rows = torch.tensor([[1e6, 0.0], [0.0, 1e-3]], dtype=torch.float64)
    torch.testing.assert_close(
        AdaTask(num_tasks=2).combine(rows), torch.ones(2).double(), rtol=1e-4, atol=0.0
    )


def test_moments_of_another_size_are_refused() -> None:
    combiner = AdaTask(num_tasks=2)
    combiner.combine(torch.ones(2, 3))
    with pytest.raises(ValueError, match="state of 3 parameters; found 4"):
        combiner.combine(torch.ones(2, 4))


def test_moments_travel_into_an_instance_that_has_none_yet() -> None:
    original, fresh = AdaTask(num_tasks=2), AdaTask(num_tasks=2)
    original.combine(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    fresh.load_state_dict(original.state_dict())
    assert fresh.first.data_ptr() != original.first.data_ptr()
    assert torch.equal(fresh.first, original.first)
