"""DB-MTL: running averages of the gradients of log-losses, all scaled to the longest."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_decay, check_number
from mtrl.combiners._families import PositiveLosses
from mtrl.combiners._state import move_rows
from mtrl.combiners.base import JacobianCombiner
from mtrl.combiners.solvers.gramian import lengths_of, one_over, weighted_sum

_MOST = 1e8  # how far an average is stretched


class DBMTL(PositiveLosses, JacobianCombiner):
    """DB-MTL (dual balancing): running averages of the gradients of log(loss_t), scaled to the longest.

    Lin et al., 2023 (arXiv:2308.12029), algorithm 1: G_t <- b G_t + (1 - b) grad log(loss_t) with b = beta /
    k^sigma in update k, and the direction is the sum of max_s |G_s| / |G_t| G_t.

    Args:
        beta: Share of the averages that one update keeps (authors: 0.9), at most 0.99999 if `sigma` is 0:
            at 1 the averages would stay zero.
        sigma: `beta` is divided by the update's number to this power (authors: 0).

    As in the authors' code the averages start at zero without correction, and a task whose gradient stays
    zero fades out: no average is stretched more than 1e8 times (they divide by |G_t| + 1e-8). The state is
    [T, P]. The metric `weights` has the weights of the averages, scaled to sum to 1. With `shift` = `minimum`
    a task above its lowest loss counts less, and nothing else of the logarithm remains.
    """

    name = "db_mtl"
    papers = ("lin2023dbmtl",)
    row_state = ("average",)

    def __init__(
        self,
        *,
        num_tasks: int,
        beta: float = 0.9,
        sigma: float = 0.0,
        shift: Literal["none", "minimum"] = "none",
    ) -> None:
        super().__init__(num_tasks=num_tasks, shift=shift)
        self.sigma = check_number("sigma", sigma, low=0.0)
        falls = self.sigma > 0.0
        self.beta = check_number("beta", beta, low=0.0, high=1.0) if falls else check_decay("beta", beta)
        self.average: Tensor
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.float64))

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        self.prepare(jacobian[0])
        assert losses is not None
        self.step.add_(1.0)
        kept = self.beta * self.step**-self.sigma
        move_rows(self.average, kept, (1.0 - kept) / self.origin(losses), jacobian)
        lengths = lengths_of(self.average)
        inverse = one_over(lengths, most=_MOST)
        self.last_weights.copy_(inverse / inverse.sum().clamp(min=1e-300))
        return weighted_sum(lengths.amax() * inverse, self.average).to(jacobian.dtype)
