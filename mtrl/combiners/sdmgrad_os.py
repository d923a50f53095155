"""SDMGrad-OS: SDMGrad with objective sampling, a few tasks per update."""

from torch import Tensor

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import Sampled
from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners.sdmgrad import shortest_mix, with_mean
from mtrl.combiners.solvers.gramian import gramian, weighted_sum


class SDMGradOS(Sampled):
    """SDMGrad-OS (objective sampling): SDMGrad between a few tasks, drawn anew for each update.

    Xiao, Ban and Ji, NeurIPS 2023 (arXiv:2305.18409), section on objective sampling. Only the drawn tasks
    pass through the networks; critic and actor draw their own, as in the authors' code. The part along the
    mean gradient is unbiased.

    Args:
        sampled: Tasks per update (authors: 4 of MT10's 10); T or more is SDMGrad itself.
        lam: Weight of the mean gradient in the objective (0.6 in the authors' RL runs).

    Deviations from the authors' code: exactly `sampled` tasks are drawn, theirs draws each with probability
    sampled / T (and again if none was drawn). w ranges over the drawn tasks and is solved anew; theirs keeps
    w between updates, takes 20 steps per update, and multiplies all of the direction by T / sampled. The
    code's zero rows for other tasks often take all of w and leave only lam g0 / (1 + lam). `order` is ours
    (see `_families.Sampled`). The temperatures of tasks that were not drawn change only by Adam's momentum.
    In `mtl_step` the task heads of all tasks step; in training those of tasks that were not drawn have a
    gradient of 0.
    """

    name = "sdmgrad_os"
    papers = ("xiao2023sdmgrad",)
    multiplies_gradients = True
    evaluates_all = False

    def __init__(
        self, *, num_tasks: int, sampled: int = 4, lam: float = 0.6, order: tuple[int, ...] = ()
    ) -> None:
        super().__init__(num_tasks=num_tasks, sampled=sampled, order=order)
        self.lam = check_number("lam", lam, low=0.0)

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        tasks = self._draw()[: self._singles]
        return self._direction(jacobian.index_select(0, tasks), tasks)

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P]; evaluates only the tasks of this update."""
        tasks = self._draw()[: self._singles]
        return self._direction(self._seen(jacobian_at(tasks=tasks), tasks), tasks)

    def _direction(self, rows: Tensor, tasks: Tensor) -> Tensor:
        weights = with_mean(shortest_mix(gramian(rows), self.lam), self.lam)
        self.step.add_(1)
        self.last_weights.zero_().index_copy_(0, tasks, weights.to(self.last_weights.dtype))
        return weighted_sum(weights, rows)
