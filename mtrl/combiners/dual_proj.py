"""DualProj (GEM): the mean gradient, projected on the cone of directions that harm no task."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_weights
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import divisor, gram_lengths, rounding_ridge
from mtrl.combiners.solvers.projections import cone_projection


class DualProj(GramCombiner):
    """DualProj (dual projection): the direction nearest to the mean gradient in {d: g_t.d >= 0 for all t}.

    Lopez-Paz and Ranzato, NeurIPS 2017 (arXiv:1706.08840), equation 11, where it is the step of GEM
    (gradient episodic memory), and TorchJD's aggregator of this name: weights v minimise v'Mv subject to
    v >= 1 / T for the Gramian M. `upgrad` projects each gradient instead of their mean.

    Args:
        preference: Weight of each task in the vector that is projected, used as given; empty: 1 / T each.

    GEM's code adds a ridge, and optionally a margin to the constraints. Deviations from TorchJD: the program
    is solved on the device to rounding error, and the Gramian's norm and regularisation constants, which
    replace small gradients by their mean, are absent.
    """

    name = "dual_proj"
    papers = ("lopezpaz2017gem",)

    def __init__(self, *, num_tasks: int, preference: tuple[float, ...] = ()) -> None:
        super().__init__(num_tasks=num_tasks)
        weights = check_weights("preference", preference, num_tasks)
        self._preference = nn.Buffer(weights, persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        return cone_projection(gram, self._preference, ridge=rounding_ridge(gram))

    def metrics(self) -> dict[str, Tensor]:
        """Add `residual`: the largest violation of the optimality conditions, unit gradients.

        The added weights and the tasks' gains are at least 0, and one of the two is 0; both in units of the
        largest gradient that is projected. Up to 1e-5; in single precision the ridge makes it up to 3e-5 for
        dependent gradients.
        """
        lengths = gram_lengths(self._last_gram)
        scale = divisor((self._preference * lengths).amax())
        added = (self.last_weights - self._preference) * lengths / scale
        gains = self._last_gram @ self.last_weights / torch.where(lengths > 0.0, lengths * scale, torch.inf)
        return {**super().metrics(), "residual": torch.minimum(added, gains).abs().amax()}
