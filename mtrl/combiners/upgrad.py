"""UPGrad: projects each gradient on the cone of directions that harm no task, then takes the mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import cosines, rounding_ridge
from mtrl.combiners.solvers.projections import cone_weights, violation


class UPGrad(GramCombiner):
    """UPGrad (unconflicting projection): mean of the gradients, each projected on {d: g_j.d >= 0 for all j}.

    Quinton and Rey, 2024 (arXiv:2406.16232), equation 3 and proposition 1: the projection of g_i has the
    weights v that minimise v'Mv subject to v >= e_i for the Gramian M. No task gets worse to first order, and
    what a task contributes is proportional to its gradient's length.

    Deviations from the authors' library: the programs are solved on the device to rounding error, all as one
    batch, and the Gramian's norm and regularisation constants (1e-4 there), which replace small gradients by
    their mean, are absent.
    """

    name = "upgrad"

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)
        self._solution = nn.Buffer(torch.eye(num_tasks, dtype=torch.float64), persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        """Return the mean over the tasks of their projections' weights, shape [T], for the Gramian [T, T]."""
        exact = gram.to(torch.float64)
        solution = cone_weights(exact, ridge=rounding_ridge(gram))
        self._solution.copy_(solution)
        inverse = cosines(exact)[1]
        return inverse.reciprocal() @ solution * inverse / self.num_tasks

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the largest violation of the programs' optimality conditions, unit gradients.

        Below 1e-5, but up to 3e-4 in single precision where gradients nearly cancel: what the ridge does.
        """
        residual = violation(cosines(self._last_gram)[0], self._solution).amax()
        return {**super().metrics(), "residual": residual}
