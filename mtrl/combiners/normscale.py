"""Normalisation by smoothed gradient norms, with a Jacobian in few updates only."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_decay
from mtrl.combiners._families import Refreshed
from mtrl.combiners.solvers.gramian import divisor, gram_lengths, one_over


class NormScale(Refreshed):
    """Weights inverse to running means of the gradients' norms: w_t = (1 / n_t) / sum_s (1 / n_s).

    After Guo et al., 2025 (arXiv:2509.23915), whose abstract reports that imbalance between tasks goes with
    their gradient norms and that scaling losses by these comes close to a grid search of weights. The paper's
    formula could not be read; this one is ours. n_t is the running mean of |g_t| over the refreshes. Unlike
    the current norm (`ngdiff`), it does not weigh a batch's gradient by that batch's own noise.

    Args:
        decay: Share of the running mean that one refresh keeps.
        refresh_every: Updates per Jacobian; in between, one backward pass of the weighted loss is enough.

    Task heads are not weighted. A task whose gradient is zero at a refresh weighs 0 until the next one, and
    its running mean stays as it was.
    """

    name = "normscale"
    papers = ("guo2025imbalance",)
    credit = "No paper describes this formula: it follows a finding in the paper's abstract."

    def __init__(self, *, num_tasks: int, decay: float = 0.9, refresh_every: int = 10) -> None:
        super().__init__(num_tasks=num_tasks, refresh_every=refresh_every)
        self.decay = check_decay("decay", decay)
        self.norms = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))
        self.share = nn.Buffer(torch.zeros(num_tasks, dtype=torch.float64))  # of the means that is data

    def _solve(self, gram: Tensor) -> Tensor:
        lengths = gram_lengths(gram.to(torch.float64))
        there = lengths != 0.0
        moved = self.norms.lerp(lengths, 1.0 - self.decay)
        torch.where(there, moved, self.norms, out=self.norms)
        filled = self.share * self.decay + (1.0 - self.decay)
        torch.where(there, filled, self.share, out=self.share)
        # The correction for the start cancels between tasks that had a gradient equally often.
        corrected = self.share / self.share.amax().clamp(min=1e-300)
        inverse = torch.where(there, one_over(self.norms) * corrected, 0.0)
        return inverse / divisor(inverse.sum())

    def metrics(self) -> dict[str, Tensor]:
        """Add `gradient_norms` [T], the running means."""
        return {**super().metrics(), "gradient_norms": self.norms / divisor(self.share)}
