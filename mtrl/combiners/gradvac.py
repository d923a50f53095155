"""GradVac: turns each gradient until its cosine with the others reaches a running mean."""

import torch
from torch import Tensor, nn

from mtrl.combiners._checks import check_number
from mtrl.combiners.pcgrad import PCGrad
from mtrl.combiners.solvers.surgery import turned


class GradVac(PCGrad):
    """GradVac (gradient vaccine): PCGrad whose target cosine per pair is a running mean instead of 0.

    Wang et al., ICLR 2021 (arXiv:2010.05874), algorithm 1. For each task, in a random order of the others,
    whenever the cosine phi of its running gradient with an original gradient is below the target, enough of
    the latter is added to reach the target. Then target <- (1 - beta) target + beta phi. The first update,
    with targets of 0, is PCGrad's.

    Args:
        beta: Share of the new cosine in the running means (paper: 0.01), in [0, 1].

    Deviations from the paper: the mean instead of the sum of the gradients; one target per pair for all
    parameters (the paper also has one per layer); a target angle has a sine of at least 1e-3. The orders come
    from a counter in the state. Pairs with a zero gradient, or one that the others cancelled, keep their
    target.
    """

    name = "gradvac"
    papers = ("wang2021gradvac",)

    def __init__(self, *, num_tasks: int, beta: float = 0.01) -> None:
        super().__init__(num_tasks=num_tasks)
        self.beta = check_number("beta", beta, low=0.0, high=1.0)
        self.targets = nn.Buffer(torch.zeros(num_tasks, num_tasks, dtype=torch.float64))

    def _weights(self, gram: Tensor) -> Tensor:
        weights, targets = turned(gram, self.draw_orders(), self.targets, self.beta)
        self.targets.copy_(targets)
        return weights

    def metrics(self) -> dict[str, Tensor]:
        """Add `target_mean`, the mean target over the pairs."""
        pairs = max(self.num_tasks * (self.num_tasks - 1), 1)
        return {**super().metrics(), "target_mean": self.targets.sum() / pairs}
