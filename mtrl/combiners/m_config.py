"""M-ConFIG: ConFIG of running means of the gradients, one task's backward pass per update."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_decay, check_number
from mtrl.combiners._jacobian_at import JacobianAt
from mtrl.combiners.base import JacobianCombiner
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
    by rounding, since the second moment has the direction's scale. The state is [T, P]. In `mtl_step` the
    task heads of all tasks step; in training those of other tasks have a gradient of 0.
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
        # Of each running mean and of the two moments: updates between renewals, the first renewal, the decay.
        turns = [(num_tasks, task, beta1) for task in range(num_tasks)]
        moments = [(1, num_tasks - 1, beta1), (1, num_tasks - 1, beta2)]
        every, begin, decays = zip(*turns, *moments, strict=True)
        self._every = nn.Buffer(torch.tensor(every), persistent=False)
        self._begin = nn.Buffer(torch.tensor(begin), persistent=False)
        self._decays = nn.Buffer(torch.tensor(decays, dtype=torch.float64), persistent=False)

    def direction(self, jacobian_at: JacobianAt) -> Tensor:
        """Return the step [P]; evaluates only the task whose turn it is."""
        task = self.step % self.num_tasks
        return self._renewed(self._seen(jacobian_at(tasks=task), task), task)

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        task = self.step % self.num_tasks
        return self._renewed(jacobian.index_select(0, task), task)

    def _renewed(self, row: Tensor, task: Tensor) -> Tensor:
        self.prepare(row[0])
        moved = self.means.index_select(0, task).lerp_(row.to(self.means.dtype), 1.0 - self.beta1)
        self.means.index_copy_(0, task, moved)
        start, start_pseudo, start_second = self._corrections().split((self.num_tasks, 1, 1))
        # Weights for the corrected means, means / start, without a second tensor of their size.
        gram = gramian(self.means).div_(torch.outer(start, start))
        weights = equal_projections(gram, projected=True)
        # While a mean is unknown nothing moves: zero weights also leave the two moments at zero.
        weights.masked_fill_(self.step < self.num_tasks - 1, 0.0)
        self.last_weights.copy_(weights)
        combined = weighted_sum(weights.div_(start), self.means)
        step = self._scaled(combined, start_pseudo[0], start_second[0])
        self.step.add_(1)
        return step.to(row.dtype)

    def _corrections(self) -> Tensor:
        """Return 1 - decay^renewals of the means and of the two moments [T + 2], as after this update."""
        renewals = (self.step - self._begin).div_(self._every, rounding_mode="floor").add_(1)
        return 1.0 - self._decays ** renewals.clamp_(min=1)

    def _scaled(self, combined: Tensor, start_pseudo: Tensor, start_second: Tensor) -> Tensor:
        pseudo = combined * start_pseudo
        gradient = torch.sub(pseudo, self.pseudo[0], alpha=self.beta1).div_(1.0 - self.beta1)
        self.pseudo.copy_(pseudo)
        self.second.lerp_(gradient.square_(), 1.0 - self.beta2)
        # The authors' direction is T times as long, beside the same eps.
        root = (self.second[0] / start_second).sqrt_().add_(self.eps / self.num_tasks)
        return combined.div_(root)
