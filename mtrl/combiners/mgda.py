"""MGDA: the shortest direction in the convex hull of the task gradients."""

import torch
from torch import Tensor

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.hull import hull_gap, shortest_in_hull


class MGDA(GramCombiner):
    """MGDA (multiple-gradient descent): the min-norm point g_w of the convex hull of the task gradients.

    Désidéri, Comptes Rendus Mathématique 350, 2012; Sener and Koltun, NeurIPS 2018 (arXiv:1810.04650). Every
    task improves by at least |g_w|^2 per unit of step, so the direction vanishes exactly where no direction
    improves all tasks.

    Deviations from the usual code: w is solved to convergence; Frank-Wolfe steps leave directions ten times
    too long where norms differ by orders of magnitude. Gradients are not normalised, and task heads follow
    their unweighted losses. Zero gradients (in a smooth transition near 1e-16 of the longest, see
    solvers/path.py) leave the minimisation.
    """

    name = "mgda"
    papers = ("desideri2012mgda", "sener2018mgda")

    def _weights(self, gram: Tensor) -> Tensor:
        return shortest_in_hull(gram, eps=torch.finfo(gram.dtype).eps)

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the gap of the optimality conditions of w relative to the mean squared norm."""
        return {**super().metrics(), "residual": hull_gap(self._last_gram, self.last_weights)}
