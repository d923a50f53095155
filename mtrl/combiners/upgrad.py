"""UPGrad: projects each gradient on the cone of directions that harm no task, then takes the mean."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_weights
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import cosines, rounding_ridge
from mtrl.combiners.solvers.projections import cone_weights, violation


class UPGrad(GramCombiner):
    """UPGrad (unconflicting projection): mean of the gradients, each projected on {d: g_j.d >= 0 for all j}.

    Quinton and Rey, 2024 (arXiv:2406.16232), equation 3 and proposition 1: the projection of g_i has the
    weights v that minimise v'Mv subject to v >= e_i for the Gramian M. No task gets worse to first order, and
    what a task contributes is proportional to its gradient's length.

    Args:
        preference: Weight of each task's projected gradient, used as given; empty: 1/T each.

    Deviations from the authors' library: the programs are solved to rounding error on the device, as one
    batch. Its constants for the Gramian's norm and regularisation (1e-4), which replace small gradients by
    their mean, are absent.
    """

    name = "upgrad"
    papers = ("quinton2024jacobian",)

    def __init__(self, *, num_tasks: int, preference: tuple[float, ...] = ()) -> None:
        super().__init__(num_tasks=num_tasks)
        weights = check_weights("preference", preference, num_tasks)
        self._preference = nn.Buffer(weights, persistent=False)
        self._solution = nn.Buffer(torch.eye(num_tasks, dtype=torch.float64), persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        exact = gram.to(torch.float64)
        solution = cone_weights(exact, ridge=rounding_ridge(gram))
        self._solution.copy_(solution)
        inverse = cosines(exact)[1]
        return (self._preference / inverse) @ solution * inverse

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the largest violation of the optimality conditions, for unit gradients.

        Up to 1e-5; in single precision the ridge makes it up to 3e-4 where gradients nearly cancel.
        """
        residual = violation(cosines(self._last_gram)[0], self._solution).amax()
        return {**super().metrics(), "residual": residual}
