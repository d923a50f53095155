"""Affinity: measures, while another method trains, how much each task's step helps the others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_decay
from mtrl.combiners._families import Wrapper
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.gramian import cosines_or_zero, divisor, gramian, weighted_sum


class Affinity(Wrapper):
    """Affinity between tasks, collected during training: running means that `scripts/group.py` reads.

    After Wang et al., 2024 (arXiv:2402.15328; only the abstract could be read). The measure is the look-ahead
    of Fifty et al., NeurIPS 2021 (arXiv:2109.04617) to first order: the step -h g_i of task i changes
    loss j by -h <g_i, g_j>. `gains[i, j]` is the running mean of <g_i, g_j> / |loss_j|, the share of loss j
    that task i's step removes per unit of step size. `cosines[i, j]` is the running mean of the cosine.

    Args:
        base: Name of the method that combines the unchanged gradients.
        decay: Share of the running means that one update keeps.

    The cost is one Gramian, unless the base needs it anyway. A loss enters by its absolute value, at least
    1e-8; gains mean little for losses of either sign, such as SAC's actor's.
    """

    name = "affinity"
    papers = ("wang2024grouping", "fifty2021tag")
    credit = (
        "No paper describes this method: it measures, for any base, what the second paper measures, for "
        "groupings as in the first."
    )

    def __init__(
        self,
        *,
        num_tasks: int,
        base: str = "cagrad",
        base_options: Mapping[str, Any] | None = None,
        decay: float = 0.999,
    ) -> None:
        super().__init__(num_tasks=num_tasks, base=base, base_options=base_options)
        self.reads_losses = self.multiplies_gradients = True
        self.decay = check_decay("decay", decay)
        self.gains = nn.Buffer(torch.zeros(num_tasks, num_tasks, dtype=torch.float64))
        self.cosines = nn.Buffer(torch.zeros(num_tasks, num_tasks, dtype=torch.float64))
        self.share = nn.Buffer(torch.zeros(1, dtype=torch.float64))  # of the means that is data

    def _combine(self, jacobian: Tensor, losses: Tensor | None) -> Tensor:
        assert losses is not None
        gram = gramian(jacobian)
        self._note(gram.to(torch.float64), losses.to(torch.float64))
        with self.base.unchecked():  # `combine` has checked the same gradients
            if isinstance(self.base, GramCombiner) and self.base.combines_by_weights:
                direction = weighted_sum(self.base.weights(gram), jacobian)
            else:
                direction = self.base.combine(jacobian, losses)
        self.last_weights.copy_(self.base.last_weights)
        return direction

    def _note(self, gram: Tensor, losses: Tensor) -> None:
        self.gains.lerp_(gram / losses.abs().clamp(min=1e-8), 1.0 - self.decay)
        self.cosines.lerp_(cosines_or_zero(gram), 1.0 - self.decay)
        self.share.mul_(self.decay).add_(1.0 - self.decay)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return `gains` and `cosines` [T, T], corrected for their zero start."""
        share = divisor(self.share)
        return self.gains / share, self.cosines / share
