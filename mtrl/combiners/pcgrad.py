"""PCGrad: projects conflicting gradients onto each other's normal planes."""

import torch
from torch import Tensor, nn

from mtrl.combiners._random import shuffled
from mtrl.combiners.base import GramCombiner
from mtrl.combiners.solvers.surgery import projected


class PCGrad(GramCombiner):
    """PCGrad (gradient surgery): each gradient loses its parts along those it conflicts with; then the mean.

    Yu et al., NeurIPS 2020 (arXiv:2001.06782), algorithm 1. For each task, in a random order of the others,
    the running gradient is projected onto the normal plane of an original gradient whenever their product is
    negative.

    Deviations from the paper: the mean instead of the sum of the projected gradients, as in the RL code of
    facebookresearch/mtrl; the orders come from a counter in the state.
    """

    name = "pcgrad"
    papers = ("yu2020pcgrad",)

    def __init__(self, *, num_tasks: int) -> None:
        super().__init__(num_tasks=num_tasks)
        others = [[other for other in range(num_tasks) if other != task] for task in range(num_tasks)]
        self.step = nn.Buffer(torch.zeros(1, dtype=torch.int64))
        self._others = nn.Buffer(torch.tensor(others, dtype=torch.int64), persistent=False)

    def _weights(self, gram: Tensor) -> Tensor:
        return projected(gram, self.draw_orders())

    def draw_orders(self) -> Tensor:
        """Return a random order of the other tasks for each task [T, T-1]; advances the counter."""
        order = shuffled(self._others, self.step, self.stream)
        self.step.add_(1)
        return order
