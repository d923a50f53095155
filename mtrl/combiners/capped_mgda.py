"""Capped MGDA: the shortest mix of the task gradients in which no task weighs more than a cap."""

import torch
from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import divisor
from mtrl.combiners.solvers.hull import shortest_capped


class CappedMGDA(GramCombiner):
    """Capped MGDA: the shortest g_w over the simplex with w_t <= `cap`; 1 is MGDA, 1 / T the mean.

    After arXiv:2605.30452 (2026), of which nothing could be read: the problem is known from a third party's
    summary, and whether the authors solve or smooth it is unknown. By duality d = g_w maximises m(d) - |d|^2
    / 2, where m(d) is the mean improvement of the worst 1 / (`cap` T) of the tasks (conditional value at
    risk), and m(g_w) = |g_w|^2. MGDA guarantees this improvement to each task; here it is guaranteed to
    groups of tasks, and steps are longer where few tasks stand against many.

    Args:
        cap: Largest weight of a task, in [0, 1]; below 1 / T it means 1 / T, the mean. The default is the
            mean for up to three tasks.

    Zero gradients (in a smooth transition near 1e-16 of the longest, see solvers/path.py) get only the weight
    that the caps of the others leave, so that 1 / T stays the mean.
    """

    name = "capped_mgda"
    papers = ("hu2026cappedmgda",)
    credit = "The problem is the paper's, but its text could not be read; the solver is this project's."

    def __init__(self, *, num_tasks: int, cap: float = 0.3) -> None:
        super().__init__(num_tasks=num_tasks)
        self.cap = check_number("cap", cap, low=0.0, high=1.0)

    def _weights(self, gram: Tensor) -> Tensor:
        return shortest_capped(gram, self.cap, eps=torch.finfo(gram.dtype).eps)

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the gap of the optimality conditions of w relative to the mean squared norm."""
        products = self._last_gram @ self.last_weights
        squares = self._last_gram.diagonal()
        # Weights within the caps minimise the sum of products by filling the caps in ascending order of the
        # products. As in the solution, zero gradients come last.
        there = squares > 0.0
        order = torch.where(there, products, torch.inf).argsort()
        number = torch.arange(1, self.num_tasks + 1, dtype=products.dtype, device=products.device)
        most = (number * max(self.cap, 1.0 / self.num_tasks)).clamp(max=1.0)
        least = (most.diff(prepend=most.new_zeros(1)) * products[order]).sum()
        gap = torch.dot(self.last_weights, products) - least
        return {**super().metrics(), "residual": gap / divisor(squares.mean())}
