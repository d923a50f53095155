"""Methods that evaluate a few tasks per update: which ones, from a counter in the state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtrl.combiners._checks import check_count, check_order
from mtrl.combiners._random import draw_tasks, next_tasks
from mtrl.combiners.base import JacobianCombiner


class Sampled(JacobianCombiner):
    """A few tasks per update: drawn anew for each, or in a given order.

    The order is after Data-CUBE, Min et al., ACL Findings 2024 (arXiv:2401.03563, of which only the abstract
    could be read): tasks that are alike follow each other. Both ways take each of the T tasks with
    probability n / T at any update, n their number; in an order updates depend on each other, and any T of
    them take every task n times.

    Args:
        num_tasks: T.
        sampled: Gradients per update, at most T.
        pooled: How many of these are not a single task's.
        order: All task numbers, a round trip that updates go through from a place that the stream draws;
            empty: random tasks.
    """

    def __init__(self, *, num_tasks: int, sampled: int, order: Sequence[int], pooled: int = 0) -> None:
        super().__init__(num_tasks=num_tasks)
        self._singles = min(check_count("sampled", sampled), num_tasks) - pooled
        self.order: Tensor
        self.step: Tensor
        given = torch.tensor(check_order("order", order, num_tasks), dtype=torch.int64)
        self.register_buffer("order", given, persistent=False)  # an option of the run, not its state
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64))

    def _draw(self) -> Tensor:
        """Return the tasks of this update, int64 [n], and go on to the next."""
        if len(self.order):
            tasks = next_tasks(self.order, self._singles, self.step, self.stream)
        else:
            tasks = draw_tasks(self.num_tasks, self._singles, self.step, self.stream)
        self.step.add_(1)
        return tasks

    def reset(self) -> None:
        """Start the sequence of tasks again."""
        super().reset()
        self.step.zero_()
