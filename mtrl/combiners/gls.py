"""GLS: the geometric mean of the losses."""

from typing import Literal

from torch import Tensor

from mtrl.combiners._state import LossOrigin
from mtrl.combiners.base import LossCombiner


class GLS(LossCombiner):
    """GLS (geometric loss strategy): minimises (prod_t loss_t)^(1/T), so that no scale of a loss matters.

    Chennupati et al., CVPR workshops 2019 (arXiv:1904.08325): task t weighs (prod_s loss_s)^(1/T) / (T
    loss_t).

    Args:
        shift: `none` needs losses of at least 0, such as a critic's; `minimum` measures each task's loss from
            its lowest value so far, plus one (ours). The weights then depend on the losses' scale.

    A loss below 1e-8 counts as 1e-8.
    """

    name = "gls"
    positive_losses = True

    def __init__(self, *, num_tasks: int, shift: Literal["none", "minimum"] = "none") -> None:
        super().__init__(num_tasks=num_tasks)
        self.origin = LossOrigin(num_tasks, shift)
        self.shift = shift

    def _weights(self, losses: Tensor) -> Tensor:
        logarithms: Tensor = self.origin(losses).log()
        return ((logarithms.mean() - logarithms).exp() / self.num_tasks).to(losses.dtype)
