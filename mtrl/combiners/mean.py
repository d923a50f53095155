"""The mean of the task gradients, or a sum with fixed weights: the baseline of every comparison."""

from torch import Tensor, nn

from mtrl.combiners._checks import check_weights
from mtrl.combiners.base import LossCombiner


class Mean(LossCombiner):
    """Fixed weights, by default 1/T: the direction is the gradient of the mean loss (linear scalarisation).

    Args:
        weights: Weight of each task, used as given: their sum scales the step. Empty: 1/T each.
    """

    name = "mean"
    credit = "There is no paper to cite: it is the plain mean of the losses."
    reads_losses = False

    def __init__(self, *, num_tasks: int, weights: tuple[float, ...] = ()) -> None:
        super().__init__(num_tasks=num_tasks)
        self._fixed = nn.Buffer(check_weights("weights", weights, num_tasks), persistent=False)

    def _weights(self, losses: Tensor) -> Tensor:
        return self._fixed.clone()
