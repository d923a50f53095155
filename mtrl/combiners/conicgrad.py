"""ConicGrad: the best worst-case improvement within a cone around the mean gradient."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.worst_case import best_in_cone, cone_gap


class ConicGrad(GramCombiner):
    """ConicGrad: max_d min_i g_i.d in the cone g0.d >= c |g0| |d| around the mean gradient g0, |d| = |g0|.

    Hassanpour et al., 2025 (arXiv:2502.00217), for the problem. Its exact dual is solved here: w on the
    simplex and eta >= 0 minimise |v| - c eta for v = g_w + eta g0 / |g0|, and d = |g0| v / |v|. eta is 0
    where the cone does not bind.

    Args:
        c: Smallest cosine between the direction and the mean gradient; 1 is the mean, 0 the half-space.

    Deviations: the paper's closed form with a regularised inverse, its default c and its optimiser of w are
    not reproduced, because no public code was found and its equations could not be read; the unregularised
    form as derived here points away from g0 where g_w.g0 > 0. Where gradients cancel, no direction in the
    cone improves all tasks; the shortest of the best vectors up to length |g0| is then stretched to it. Zero
    gradients (in a smooth transition near 1e-16 of the longest, see solvers/path.py) leave the minimisation.
    """

    name = "conicgrad"
    papers = ("hassanpour2025conicgrad",)

    def __init__(self, *, num_tasks: int, c: float = 0.5) -> None:
        super().__init__(num_tasks=num_tasks)
        self.c = check_number("c", c, low=0.0, high=1.0)
        self._solution = nn.Buffer(torch.zeros(num_tasks + 1, dtype=torch.float64), persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        """Return |g0| (w + eta / |g0| u) / |g_w + eta e0|, shape [T], for the Gramian [T, T]."""
        if self.c == 1.0:
            return torch.full_like(self.last_weights, 1.0 / self.num_tasks)
        solution, length, reach = best_in_cone(gram, self.c, eps=torch.finfo(gram.dtype).eps)
        self._solution.copy_(solution * reach)
        # Of the solution's weights the last one is that of g0 / |g0|.
        return torch.add(solution[:-1] * length, solution[-1] / self.num_tasks)

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the duality gap of the last solve relative to the gradients' norms.

        Up to 1e-5, unless all gradients lie within 1e-5 of one line or cancel to a mean of less than 1e-5 of
        their length (single precision: 1e-3; docs/methods.md).
        """
        return {**super().metrics(), "residual": cone_gap(self._last_gram, self.c, self._solution)}
