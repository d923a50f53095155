"""CAGrad-Fast: CAGrad between a few sampled tasks and the pooled rest."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners._families import Sampled
from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners.cagrad import divisor_of
from mtrl.combiners.solvers.gramian import gramian, weighted_sum
from mtrl.combiners.solvers.worst_case import best_around


class CAGradFast(Sampled):
    """CAGrad-Fast: CAGrad on the gradients of a few sampled tasks and one gradient of all the others.

    Liu et al., NeurIPS 2021 (arXiv:2110.14048), equation 4. An update takes `sampled - 1` task gradients. All
    other tasks are pooled into one more, the gradient of their mean loss. The ball is still centred at the
    mean gradient of all tasks.

    Args:
        sampled: Gradients that enter the problem, the pooled one included (authors: 4 MT10, 8 MT50); T or
            more is `cagrad` with the same c and rescale, 1 is a multiple of the mean.
        c: Radius of the ball around the mean gradient relative to its norm (paper: 0.9 MT10, 0.5 MT50).
        rescale: Divides the direction by 1 (0), by 1 + c^2 (1) or by 1 + c (2, the authors' code here).

    Deviations from the authors' code: the pooled gradient holds every task that was not sampled (theirs
    leaves one out), samples come from a counter in the state, and the dual is solved to convergence. Theirs
    divides gradients by 100 first, so that SLSQP stops at equal weights for gradients of length 1 and below.
    `order` is ours (see `_families.Sampled`).
    """

    name = "cagrad_fast"
    papers = ("liu2021cagrad",)
    multiplies_gradients = True

    def __init__(
        self,
        *,
        num_tasks: int,
        sampled: int = 4,
        c: float = 0.9,
        rescale: Literal[0, 1, 2] = 2,
        order: tuple[int, ...] = (),
    ) -> None:
        super().__init__(num_tasks=num_tasks, sampled=sampled, order=order, pooled=1)
        self.c = check_number("c", c, low=0.0)
        self._divisor = divisor_of(self.c, rescale)
        reference = torch.full((self._singles + 1,), 1.0 / num_tasks, dtype=torch.float64)
        reference[-1] = 1.0 - self._singles / num_tasks
        self._reference = nn.Buffer(reference, persistent=False)
        members = torch.ones(self._singles + 1, dtype=torch.float64)
        members[-1] = num_tasks - self._singles
        self._divisors = nn.Buffer(members * self._divisor, persistent=False)
        self._places = nn.Buffer(torch.arange(num_tasks).clamp(max=self._singles), persistent=False)

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        order = self._draw()
        alone, others = order.tensor_split([self._singles])
        pooled = jacobian.index_select(0, others).mean(dim=0, keepdim=True)
        return self._direction(torch.cat((jacobian.index_select(0, alone), pooled)), order)

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the direction [P]; of tasks that were not sampled only the mean loss is differentiated."""
        order = self._draw()
        gradients = jacobian_at.pooled(order, self._singles)
        self._seen(gradients[:-1], order[: self._singles])
        return self._direction(gradients, order)

    def _check_pooled(self, gram: Tensor, tasks: Tensor) -> None:
        if not bool(gram.isfinite().all()):
            others = sorted(set(range(self.num_tasks)) - set(tasks.tolist()))
            raise ValueError(
                f"{self.name} needs products of gradients; those of the mean gradient of tasks {others} "
                f"are not finite in {str(gram.dtype)[6:]}. Fix or drop non-finite gradients, or divide the "
                "losses by a constant."
            )

    def _direction(self, gradients: Tensor, order: Tensor) -> Tensor:
        gram = gramian(gradients)
        if self._checked:
            self._check_pooled(gram, order[: self._singles])
        self.step.add_(1)
        eps = torch.finfo(gram.dtype).eps
        weights = best_around(gram, self._reference, self.c, eps=eps)[0]
        # The tasks that were not sampled share the weight of the pooled gradient.
        shares = (weights / self._divisors).index_select(0, self._places)
        self.last_weights.index_copy_(0, order, shares)
        return weighted_sum(weights / self._divisor, gradients)
