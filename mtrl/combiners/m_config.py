"""M-ConFIG: ConFIG of running means of the gradients, one task's backward pass per update."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_decay, check_number
from mtrl.combiners.base import JacobianAt, JacobianCombiner
from mtrl.combiners.solvers.equal import equal_projections
from mtrl.combiners.solvers.gramian import gramian, weighted_sum


class MConFIG(JacobianCombiner):
    """M-ConFIG (momentum): update k renews the running mean of task k mod T's gradient, ConFIG combines all.

    Liu, Chu and Thuerey, ICLR 2025 (arXiv:2408.11104), algorithm 1 as in the authors' code
    (PseudoMomentumOperator). Running means m_t with decay beta1, each corrected by its own count of renewals,
    give d = ConFIG(m). The second moment v is that of the gradient whose running mean would have been d, and
    the step is d / (sqrt(v) + eps). The first T - 1 updates, while some m_t is unknown, do not move.

    Args:
        beta1: Decay of the running means of gradients.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment (authors' code: 1e-8).

    The direction is an optimiser's step: apply theta - lr * direction without another Adam. An update
    evaluates one task only. Deviation from the authors' code: that of `config`, which changes the step only
    by rounding, since the second moment has the direction's scale. The state is [T, P].
    """

    name = "m_config"
    papers = ("liu2025config",)
    multiplies_gradients = True
    preconditioned = True
    evaluates_all = False
    row_state = ("means",)
    vector_state = ("pseudo", "second")

    def __init__(
        self, *, num_tasks: int, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(num_tasks=num_tasks)
        self.beta1 = check_decay("beta1", beta1)
        self.beta2 = check_decay("beta2", beta2)
        self.eps = check_number("eps", eps, low=1e-30)
        self.means: Tensor
        self.pseudo: Tensor
        self.second: Tensor
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.int64))

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the step [P]; evaluates only the task whose turn it is."""
        task = self.step % self.num_tasks
        return self._renewed(self._seen(jacobian_at(tasks=task), task))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        return self._renewed(jacobian.index_select(0, self.step % self.num_tasks))

    def _renewed(self, row: Tensor) -> Tensor:
        self.prepare(row[0])
        task = self.step % self.num_tasks
        moved = self.means.index_select(0, task).lerp(row.to(self.means.dtype), 1.0 - self.beta1)
        self.means.index_copy_(0, task, moved)
        self.step.add_(1)
        numbers = torch.arange(self.num_tasks, device=self.step.device)
        counts = (self.step - 1 - numbers).div(self.num_tasks, rounding_mode="floor") + 1
        known = (counts > 0).all()
        start = 1.0 - self.beta1 ** counts.clamp(min=1).to(torch.float64)
        # Weights for the corrected means, means / start, without a second tensor of their size.
        gram = gramian(self.means)
        weights = equal_projections(gram / torch.outer(start, start).to(gram.dtype), projected=True)
        self.last_weights.copy_(torch.where(known, weights, 0.0))
        step = self._scaled(weighted_sum(weights / start, self.means), known)
        return torch.where(known, step, 0.0).to(row.dtype)

    def _scaled(self, combined: Tensor, known: Tensor) -> Tensor:
        # Steps since all means are known; the moments do not change before.
        step = (self.step - self.num_tasks + 1).clamp(min=1).to(torch.float64)
        pseudo = combined * (1.0 - self.beta1**step).to(combined.dtype)
        gradient = (pseudo - self.beta1 * self.pseudo) / (1.0 - self.beta1)
        second = self.second.lerp(gradient.square(), 1.0 - self.beta2)
        self.pseudo.copy_(torch.where(known, pseudo, self.pseudo))
        self.second.copy_(torch.where(known, second, self.second))
        root = (self.second[0] / (1.0 - self.beta2**step).to(combined.dtype)).sqrt()
        # The authors' direction is T times as long, beside the same eps.
        return combined / (root + self.eps / self.num_tasks)
