"""GLS: the geometric mean of the losses."""

from torch import Tensor

from mtrl.combiners._families import PositiveLosses
from mtrl.combiners.base import LossCombiner


class GLS(PositiveLosses, LossCombiner):
    """GLS (geometric loss strategy): minimises (prod_t loss_t)^(1/T), so that no scale of a loss matters.

    Chennupati et al., CVPR workshops 2019 (arXiv:1904.08325): task t weighs (prod_s loss_s)^(1/T) / (T
    loss_t).

    With `shift` = `minimum` the weights depend on the losses' scale.
    """

    name = "gls"
    papers = ("chennupati2019gls",)

    def _weights(self, losses: Tensor) -> Tensor:
        logarithms: Tensor = self.origin(losses).log()
        return (logarithms.mean() - logarithms).exp() / self.num_tasks
